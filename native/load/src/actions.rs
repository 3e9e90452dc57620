//! Actions that do nothing, each another one: what they are made of, and the answer that says that one really ran.

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_raw::length_of;
use bytes::Bytes;
use prost::Message;
use sha2::{Digest as _, Sha256};

use crate::messages::{FRAME_BYTES, framed};
use crate::verify::response_of;

/// What every action runs.
const PROGRAM: &str = "/bin/true";

/// The calls for one action.
pub struct NoOp {
    /// BatchUpdateBlobs of its Command and itself.
    pub upload: Bytes,
    /// Execute.
    pub execute: Bytes,
}

/// The action of this number in the family `family`: its Command differs from all others in a variable.
pub fn no_op(instance: &str, family: u64, number: u64) -> NoOp {
    let variable = re::command::EnvironmentVariable { name: "N".to_owned(), value: format!("{family:x}-{number}") };
    let command = re::Command {
        arguments: vec![PROGRAM.to_owned()],
        environment_variables: vec![variable],
        ..Default::default()
    }
    .encode_to_vec();
    let action = re::Action {
        command_digest: Some(digest_of(&command)),
        input_root_digest: Some(digest_of(&[])),
        ..Default::default()
    }
    .encode_to_vec();
    let action_digest = digest_of(&action);
    let part = |digest: &re::Digest, data: Vec<u8>| re::batch_update_blobs_request::Request {
        digest: Some(digest.clone()),
        data: data.into(),
        ..Default::default()
    };
    let upload = re::BatchUpdateBlobsRequest {
        instance_name: instance.to_owned(),
        requests: vec![part(&digest_of(&command), command), part(&action_digest, action)],
        ..Default::default()
    };
    let execute = re::ExecuteRequest {
        instance_name: instance.to_owned(),
        action_digest: Some(action_digest),
        ..Default::default()
    };
    NoOp { upload: framed(&upload).into(), execute: framed(&execute).into() }
}

fn digest_of(bytes: &[u8]) -> re::Digest {
    re::Digest { hash: hex::encode(Sha256::digest(bytes)), size_bytes: i64::try_from(bytes.len()).unwrap_or(i64::MAX) }
}

/// Check the stream of Operations: the last one is done, and the program ran now and ended well.
///
/// # Errors
/// What it says instead.
pub fn ran(body: &Bytes) -> Result<(), String> {
    let mut rest = body.clone();
    let mut last = None;
    while let Some((prefix, _)) = rest.split_first_chunk::<FRAME_BYTES>() {
        let length = length_of(*prefix, usize::MAX).map_err(|status| status.message().to_owned())?;
        if rest.len() < FRAME_BYTES + length {
            return Err("a stream that ends within a message".to_owned());
        }
        last = Some(rest.slice(FRAME_BYTES..FRAME_BYTES + length));
        rest = rest.slice(FRAME_BYTES + length..);
    }
    let response = response_of(last.ok_or("a stream without an Operation")?)?;
    if let Some(status) = response.status.as_ref().filter(|status| status.code != 0) {
        return Err(format!("status {}: {}", status.code, status.message));
    }
    match response.result {
        Some(result) if result.exit_code == 0 && !response.cached_result => Ok(()),
        Some(result) => Err(format!("exit code {}, cached {}", result.exit_code, response.cached_result)),
        None => Err("a response without a result".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_two_are_the_same() {
        let first = no_op("", 1, 1);
        assert_ne!(first.execute, no_op("", 1, 2).execute);
        assert_ne!(first.execute, no_op("", 2, 1).execute);
        assert_eq!(first.upload, no_op("", 1, 1).upload);
    }

    proptest! {
        #[test]
        fn no_bytes_pass_for_a_run(bytes: Vec<u8>) {
            prop_assert!(ran(&Bytes::from(bytes)).is_err());
        }
    }
}
