local allow = { allow: {} };
local server(port) = { listenAddresses: ['127.0.0.1:' + port], authenticationPolicy: allow };

{
  adminHttpServers: [],
  clientGrpcServers: [server('@CLIENTS_PORT@')],
  workerGrpcServers: [server('@WORKERS_PORT@')],
  contentAddressableStorage: { grpc: { client: { address: '127.0.0.1:@STORAGE_PORT@' } } },
  maximumMessageSizeBytes: 16 * 1024 * 1024,
  executeAuthorizer: allow,
  modifyDrainsAuthorizer: allow,
  killOperationsAuthorizer: allow,
  synchronizeAuthorizer: allow,
  actionRouter: {
    simple: {
      platformKeyExtractor: { action: {} },
      invocationKeyExtractors: [{ correlatedInvocationsId: {} }, { toolInvocationId: {} }],
      initialSizeClassAnalyzer: { defaultExecutionTimeout: '1800s', maximumExecutionTimeout: '7200s' },
    },
  },
  platformQueueWithNoWorkersTimeout: '900s',
}
