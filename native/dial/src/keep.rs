//! Asks a controller to make a blob of a log that came to it live, instead of sending it once more.

use buildnet_formats::Digest;
use buildnet_formats::wire::buildnet::v1::{KeepLogRequest, KeepLogResponse};

use crate::{DialError, Link};

const KEEP_LOG: &str = "/buildnet.v1.FleetService/KeepLog";

impl Link {
    /// Whether the controller now has `digest`, which is all of that stream (1 or 2) of the attempt's log. Asks again while
    /// the log is still coming there, and `goes_on`.
    ///
    /// # Errors
    /// The controller cannot be reached, or refuses.
    pub fn keep_log(
        &self,
        fence: u64,
        stream: i32,
        digest: &Digest,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<bool, DialError> {
        let request = KeepLogRequest { fence, stream, digest: Some(digest.to_message()) };
        while goes_on() {
            let call = self.unary::<_, KeepLogResponse>(KEEP_LOG, request.clone());
            let answer = self.runtime.block_on(call)?;
            if answer.kept || !answer.waits {
                return Ok(answer.kept);
            }
        }
        Ok(false)
    }
}
