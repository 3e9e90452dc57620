//! The log of record: what a command printed becomes a blob of its result. A long one came to the controller live, and is
//! made there of that; only where it cannot be is it sent again.

use std::fs::File;
use std::path::{Path, PathBuf};

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, NativeError};
use buildnet_stage::Control;
use buildnet_store::hash_open_file;

use crate::crew::State;
use crate::order::Room;

/// Below it a call more costs as much as the bytes.
const KEPT_BYTES_MIN: u64 = 1 << 20;

/// Digests of standard output and standard error; what is to be uploaded is in the store, and added to `digests`. They are
/// read from the files that they were kept in, whatever became of their names in `scratch`.
pub(crate) fn digests_of(
    room: &Room,
    state: &State,
    logs: Option<&Control>,
    scratch: &Path,
    digests: &mut Vec<Digest>,
) -> Result<[Option<re::Digest>; 2], NativeError> {
    let named = [scratch.join("stdout"), scratch.join("stderr")];
    let [stdout, stderr] = logs.map_or_else(|| named.each_ref().map(|path| File::open(path).ok()), opened);
    let mut digest_of = |stream, file, path: &PathBuf| recorded(room, state, stream, file, path, digests);
    Ok([digest_of(1, stdout, &named[0])?, digest_of(2, stderr, &named[1])?])
}

fn opened(control: &Control) -> [Option<File>; 2] {
    control.logs().map(|file| file.and_then(|file| file.try_clone().ok()))
}

/// A log that is empty, or that a command without namespaces has taken away, has no digest.
fn recorded(
    room: &Room,
    state: &State,
    stream: i32,
    file: Option<File>,
    path: &Path,
    digests: &mut Vec<Digest>,
) -> Result<Option<re::Digest>, NativeError> {
    let Some((file, size)) = file.and_then(|file| file.metadata().ok().map(|facts| (file, facts.len()))) else {
        return Ok(None);
    };
    if size >= KEPT_BYTES_MIN {
        let digest = hash_open_file(&file, path)?;
        let goes_on = || state.unless_stopped_after().is_ok();
        // Whatever hinders it, the upload below says so if it is hindered too.
        if room.link.keep_log(state.fence, stream, &digest, &goes_on).unwrap_or(false) {
            return Ok(Some(digest.to_message()));
        }
        state.unless_stopped_after()?;
    }
    if size == 0 {
        return Ok(None);
    }
    let digest = room.store.put_open_file(&file, path)?;
    digests.push(digest);
    Ok(Some(digest.to_message()))
}
