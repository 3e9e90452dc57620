"""Bazel's own C++ rules under the names that its toolchain files load from rules_cc.

Bazel 4 accepts a native rule through rules_cc only when it carries the migration tag.
"""

_TAG = "__CC_RULES_MIGRATION_DO_NOT_USE_WILL_BREAK__"

def _with_tag(rule, attributes):
    rule(**dict(attributes, tags = (attributes.get("tags") or []) + [_TAG]))

def cc_binary(**attributes):
    _with_tag(native.cc_binary, attributes)

def cc_import(**attributes):
    _with_tag(native.cc_import, attributes)

def cc_library(**attributes):
    _with_tag(native.cc_library, attributes)

def cc_proto_library(**attributes):
    _with_tag(native.cc_proto_library, attributes)

def cc_test(**attributes):
    _with_tag(native.cc_test, attributes)

def cc_toolchain(**attributes):
    _with_tag(native.cc_toolchain, attributes)

def cc_toolchain_suite(**attributes):
    _with_tag(native.cc_toolchain_suite, attributes)

def fdo_prefetch_hints(**attributes):
    _with_tag(native.fdo_prefetch_hints, attributes)

def fdo_profile(**attributes):
    _with_tag(native.fdo_profile, attributes)

def objc_import(**attributes):
    _with_tag(native.objc_import, attributes)

def objc_library(**attributes):
    _with_tag(native.objc_library, attributes)
