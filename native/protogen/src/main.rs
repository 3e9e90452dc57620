//! Writes Rust messages from a descriptor set. A tool of `make proto`; nothing else depends on it.

use std::process::ExitCode;

use prost::Message;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [descriptors, out] = arguments.as_slice() else {
        eprintln!("usage: buildnet-protogen DESCRIPTOR_SET OUT_DIR");
        return ExitCode::from(2);
    };
    match generate(descriptors, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("buildnet-protogen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn generate(descriptors: &str, out: &str) -> Result<(), Box<dyn std::error::Error>> {
    let bytes = std::fs::read(descriptors)?;
    let mut set = prost_types::FileDescriptorSet::decode(bytes.as_slice())?;
    for file in &mut set.file {
        // Comments stay in proto/: prost would make doc tests of their indented lines.
        file.source_code_info = None;
    }
    prost_build::Config::new().bytes(["."]).out_dir(out).include_file("mod.rs").compile_fds(set)?;
    Ok(())
}
