//! Who calls, and what they may do. Refusals name the right that lacks, never the credentials.

use std::borrow::Cow;

use tonic::Status;

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Read,
    WriteCas,
    WriteActionCache,
    Execute,
}

/// The caller of one call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {}

impl Caller {
    /// Who the caller's token or certificate names, if it has one.
    pub(crate) fn subject(&self) -> Option<&str> {
        None
    }

    /// Whether the caller may do this in that instance.
    pub(crate) fn check(&self, _right: Right, _instance: &str) -> Result<(), Status> {
        Ok(())
    }

    /// The action-cache namespace that the caller's results go to in that instance.
    pub(crate) fn written<'a>(&self, instance: &'a str) -> Cow<'a, str> {
        Cow::Borrowed(instance)
    }

    /// The namespaces that the caller's look-ups go through in that instance, in this order.
    pub(crate) fn looked_up<'a>(&self, instance: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        std::iter::once(Cow::Borrowed(instance))
    }
}
