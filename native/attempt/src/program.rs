//! A program that is not there is the request's mistake, said with where it was looked for. Starts nothing.
//!
//! REAPI leaves open how a server reports it. Here it is `invalid_request` (INVALID_ARGUMENT), not exit code 127: the command
//! never ran, so there is no result that could be cached or mistaken for the program's own.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use buildnet_formats::NativeError;

/// Check that `name` is a program: a path from `cwd`, or a bare name in one of `places`.
pub(crate) fn check(name: &[u8], places: &[String], cwd: &Path) -> Result<(), NativeError> {
    if name.contains(&b'/') {
        let path = cwd.join(OsStr::from_bytes(name));
        return match std::fs::metadata(&path) {
            Ok(facts) if facts.is_dir() => Err(refusal(name, "is a directory; name a file")),
            Ok(_) if may_run(&path) => Ok(()),
            Ok(_) => Err(refusal(name, "may not be executed; set is_executable on the input")),
            Err(_) => {
                Err(refusal(name, "is not there; a relative path counts from the working directory: add an input"))
            }
        };
    }
    let runnable = |place: &String| {
        let path = cwd.join(place).join(OsStr::from_bytes(name));
        std::fs::metadata(&path).is_ok_and(|facts| facts.is_file()) && may_run(&path)
    };
    if places.iter().any(runnable) {
        return Ok(());
    }
    let why = format!("was looked for in {}; name its path, or set PATH in the Command", places.join(":"));
    Err(refusal(name, &why))
}

fn may_run(path: &Path) -> bool {
    // SAFETY: the string is NUL-terminated.
    CString::new(path.as_os_str().as_bytes()).is_ok_and(|path| unsafe { libc::access(path.as_ptr(), libc::X_OK) } == 0)
}

fn refusal(name: &[u8], why: &str) -> NativeError {
    let message = format!("the program '{}' {why}", String::from_utf8_lossy(name).escape_debug());
    NativeError::invalid("command.arguments", message)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    type Test = Result<(), Box<dyn std::error::Error>>;

    fn places(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn programs_that_are_there() -> Test {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("bin"))?;
        let script = dir.path().join("bin/script");
        std::fs::write(&script, "")?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        let own = format!("{}/bin", dir.path().display());
        let found = [
            ("/bin/sh", vec![]),
            ("sh", places(&["/usr/bin", "/bin"])),
            ("bin/script", vec![]),
            ("./bin/script", vec![]),
            ("script", places(&["bin"])),
            ("script", places(&["/nowhere", &own])),
        ];
        for (name, places) in found {
            check(name.as_bytes(), &places, dir.path())?;
        }
        Ok(())
    }

    #[test]
    fn programs_that_are_not_there_say_why() -> Test {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("data"), "")?;
        std::fs::create_dir(dir.path().join("sub"))?;
        let long = "x".repeat(5000);
        let refused = [
            ("no-such-program", places(&["/usr/local/bin", "/bin"]), "looked for in /usr/local/bin:/bin"),
            ("sh", places(&["/nowhere"]), "looked for in /nowhere"),
            ("sub", places(&["."]), "looked for in ."),
            ("./gone", vec![], "is not there"),
            ("/bin", vec![], "is a directory"),
            ("./data", vec![], "may not be executed"),
            ("data", places(&["."]), "looked for in ."),
            (long.as_str(), places(&["/bin"]), "looked for in /bin"),
        ];
        for (name, places, why) in refused {
            let error = check(name.as_bytes(), &places, dir.path()).unwrap_err();
            assert_eq!(error.code, "invalid_request");
            assert!(error.message.contains(why), "{}", error.message);
        }
        Ok(())
    }
}
