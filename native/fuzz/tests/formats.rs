//! Names, messages and digests from outside: refused with a reason or understood, and understood the same way twice.
#![allow(clippy::unwrap_used, missing_docs)]

use buildnet_formats::{Digest, ReadName, WriteName, decode_action, decode_command, decode_directory};
use buildnet_fuzz::{corpus, fuzz};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn resource_names() {
    fuzz(&corpus("names"), |input| {
        let name = text(input);
        for (code, digest) in [
            ReadName::parse(&name).map_or_else(|e| (e.code, None), |n| ("", Some(n.digest))),
            WriteName::parse(&name).map_or_else(|e| (e.code, None), |n| ("", Some(n.digest))),
        ] {
            match digest {
                // What was understood names its digest as it stands there.
                Some(digest) if !name.contains(&digest.hex()) => return Err(format!("{name:?} became {digest}")),
                None if code != "invalid_request" => return Err(format!("{name:?} is refused as {code}")),
                _ => {}
            }
        }
        Ok(())
    });
}

#[test]
fn digests() {
    fuzz(&corpus("digests"), |input| match text(input).parse::<Digest>() {
        Ok(digest) if digest.to_string().parse::<Digest>().ok() != Some(digest) => {
            Err(format!("{digest} is not itself"))
        }
        _ => Ok(()),
    });
}

#[test]
fn messages() {
    fuzz(&corpus("messages"), |input| {
        for code in [
            decode_action(input).err().map(|e| e.code),
            decode_command(input).err().map(|e| e.code),
            decode_directory(input).err().map(|e| e.code),
        ] {
            if code.is_some_and(|code| code != "invalid_request" && code != "too_large") {
                return Err(format!("refused as {code:?}"));
            }
        }
        if let Ok(directory) = decode_directory(input) {
            let names: Vec<&String> = directory.files.iter().map(|file| &file.name).collect();
            if names.iter().any(|name| name.is_empty() || name.contains('/') || *name == "..") {
                return Err("a name that leaves its directory was taken".to_owned());
            }
        }
        Ok(())
    });
}
