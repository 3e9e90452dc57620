// Directories on the disk, as small actions do best; nothing is mounted.
local storage = { grpc: { client: { address: '127.0.0.1:@STORAGE_PORT@' } } };

{
  blobstore: {
    contentAddressableStorage: storage,
    actionCache: { completenessChecking: { backend: storage, maximumTotalTreeSizeBytes: 64 * 1024 * 1024 } },
  },
  maximumMessageSizeBytes: 16 * 1024 * 1024,
  scheduler: { address: '127.0.0.1:@WORKERS_PORT@' },
  browserUrl: 'http://127.0.0.1/',
  buildDirectories: [{
    native: {
      buildDirectoryPath: '@STATE@/build',
      cacheDirectoryPath: '@STATE@/cache',
      maximumCacheFileCount: 10000,
      maximumCacheSizeBytes: 1024 * 1024 * 1024,
      cacheReplacementPolicy: 'LEAST_RECENTLY_USED',
    },
    runners: [{
      endpoint: { address: 'unix://@STATE@/runner' },
      concurrency: @SLOTS@,
      maximumFilePoolFileCount: 10000,
      maximumFilePoolSizeBytes: 64 * 1024 * 1024,
      platform: {},
      workerId: { node: 'bench' },
    }],
  }],
  filePool: { blockDevice: { file: { path: '@STATE@/pool', sizeBytes: 1024 * 1024 * 1024 } } },
  inputDownloadConcurrency: 10,
  outputUploadConcurrency: 11,
}
