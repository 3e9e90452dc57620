{
  buildDirectoryPath: '@STATE@/build',
  grpcServers: [{ listenPaths: ['@STATE@/runner'], authenticationPolicy: { allow: {} } }],
}
