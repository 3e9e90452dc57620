"""The descriptor pool of the generated modules."""

from google.protobuf import descriptor_pool

POOL = descriptor_pool.DescriptorPool()
