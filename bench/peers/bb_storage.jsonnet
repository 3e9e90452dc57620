// Sparse files as block devices, large enough that no block is reused while it is measured; results checked for
// completeness, as every other server here does.
local store(directory, new_blocks, blocks_bytes, locations_bytes) = {
  'local': {
    keyLocationMapOnBlockDevice: { file: { path: directory + '/locations', sizeBytes: locations_bytes } },
    keyLocationMapMaximumGetAttempts: 16,
    keyLocationMapMaximumPutAttempts: 64,
    oldBlocks: 8,
    currentBlocks: 24,
    newBlocks: new_blocks,
    blocksOnBlockDevice: {
      source: { file: { path: directory + '/blocks', sizeBytes: blocks_bytes } },
      spareBlocks: 3,
    },
    persistent: { stateDirectoryPath: directory + '-state', minimumEpochInterval: '300s' },
  },
};
local allow = { allow: {} };

{
  grpcServers: [{ listenAddresses: ['127.0.0.1:@PORT@'], authenticationPolicy: allow }],
  maximumMessageSizeBytes: 16 * 1024 * 1024,
  contentAddressableStorage: {
    backend: store('@STATE@/cas', 3, 32 * 1024 * 1024 * 1024, 512 * 1024 * 1024),
    getAuthorizer: allow,
    putAuthorizer: allow,
    findMissingAuthorizer: allow,
  },
  actionCache: {
    backend: { completenessChecking: { backend: store('@STATE@/ac', 1, 1024 * 1024 * 1024, 64 * 1024 * 1024), maximumTotalTreeSizeBytes: 64 * 1024 * 1024 } },
    getAuthorizer: allow,
    putAuthorizer: allow,
  },
  schedulers: { '': { endpoint: { address: '127.0.0.1:@SECOND_PORT@' } } },
  executeAuthorizer: allow,
}
