//! What a socket below a session is asked for.

use std::io;
use std::os::fd::AsFd;

use socket2::SockRef;

/// A small message written behind so much leaves within a second at 1 Mbit/s.
const UNSENT_BYTES: u32 = 128 << 10;

/// Have the kernel take no more than a little that it cannot send yet: whatever is written later waits behind it. By
/// default that is some MiB.
///
/// # Errors
/// The kernel has no such option, or the socket is not one of TCP.
pub fn bound_unsent(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_notsent_lowat(UNSENT_BYTES)
}
