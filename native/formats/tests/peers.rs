//! What the crate `bazel-remote-apis` generates from the published contracts reads what we write, and writes it again.
#![allow(clippy::unwrap_used, missing_docs, deprecated)]

use bazel_remote_apis::build::bazel::remote::execution::v2 as theirs;
use buildnet_formats::Digest;
use buildnet_formats::wire::build::bazel::remote::execution::v2 as ours;
use prost::Message;

/// Every field that we set survives: theirs knows each number, under the same type.
fn same<O: Message, T: Message + Default>(message: &O) {
    let bytes = message.encode_to_vec();
    assert!(!bytes.is_empty());
    assert_eq!(T::decode(bytes.as_slice()).unwrap().encode_to_vec(), bytes);
}

fn digest() -> Option<ours::Digest> {
    Some(Digest::of(b"x").to_message())
}

fn properties() -> Option<ours::NodeProperties> {
    Some(ours::NodeProperties {
        properties: vec![ours::NodeProperty { name: "n".into(), value: "v".into() }],
        mtime: Some(prost_types::Timestamp { seconds: 1, nanos: 2 }),
        unix_mode: Some(0o644),
    })
}

fn platform() -> Option<ours::Platform> {
    let property = ours::platform::Property { name: "OSFamily".into(), value: "linux".into() };
    Some(ours::Platform { properties: vec![property] })
}

#[test]
fn an_action_and_its_command() {
    same::<_, theirs::Action>(&ours::Action {
        command_digest: digest(),
        input_root_digest: digest(),
        timeout: Some(prost_types::Duration { seconds: 3, nanos: 4 }),
        do_not_cache: true,
        salt: b"salt".as_slice().into(),
        platform: platform(),
    });
    let variable = ours::command::EnvironmentVariable { name: "A".into(), value: "B".into() };
    same::<_, theirs::Command>(&ours::Command {
        arguments: vec!["a".into(), "b".into()],
        environment_variables: vec![variable],
        output_files: vec!["f".into()],
        output_directories: vec!["d".into()],
        output_paths: vec!["p".into()],
        platform: platform(),
        working_directory: "w".into(),
        output_node_properties: vec!["mtime".into()],
        output_directory_format: 2,
    });
}

#[test]
fn a_tree() {
    let directory = ours::Directory {
        files: vec![ours::FileNode {
            name: "f".into(),
            digest: digest(),
            is_executable: true,
            node_properties: properties(),
        }],
        directories: vec![ours::DirectoryNode { name: "d".into(), digest: digest() }],
        symlinks: vec![ours::SymlinkNode { name: "s".into(), target: "f".into(), node_properties: properties() }],
        node_properties: properties(),
    };
    same::<_, theirs::Tree>(&ours::Tree { root: Some(directory.clone()), children: vec![directory] });
}

#[test]
fn a_result() {
    let symlink = ours::OutputSymlink { path: "s".into(), target: "t".into(), node_properties: properties() };
    let at = Some(prost_types::Timestamp { seconds: 5, nanos: 6 });
    let result = ours::ActionResult {
        output_files: vec![ours::OutputFile {
            path: "f".into(),
            digest: digest(),
            is_executable: true,
            contents: b"c".as_slice().into(),
            node_properties: properties(),
        }],
        output_file_symlinks: vec![symlink.clone()],
        output_symlinks: vec![symlink.clone()],
        output_directories: vec![ours::OutputDirectory {
            path: "d".into(),
            tree_digest: digest(),
            is_topologically_sorted: true,
            root_directory_digest: digest(),
        }],
        output_directory_symlinks: vec![symlink],
        exit_code: 7,
        stdout_raw: b"o".as_slice().into(),
        stdout_digest: digest(),
        stderr_raw: b"e".as_slice().into(),
        stderr_digest: digest(),
        execution_metadata: Some(ours::ExecutedActionMetadata {
            worker: "w".into(),
            queued_timestamp: at,
            worker_start_timestamp: at,
            worker_completed_timestamp: at,
            input_fetch_start_timestamp: at,
            input_fetch_completed_timestamp: at,
            execution_start_timestamp: at,
            execution_completed_timestamp: at,
            virtual_execution_duration: Some(prost_types::Duration { seconds: 1, nanos: 1 }),
            output_upload_start_timestamp: at,
            output_upload_completed_timestamp: at,
            auxiliary_metadata: vec![prost_types::Any { type_url: "t".into(), value: vec![1] }],
        }),
    };
    same::<_, theirs::ActionResult>(&result);
}

#[test]
fn an_execution_and_what_a_server_can_do() {
    same::<_, theirs::ExecuteRequest>(&ours::ExecuteRequest {
        instance_name: "i".into(),
        skip_cache_lookup: true,
        action_digest: digest(),
        execution_policy: Some(ours::ExecutionPolicy { priority: 1 }),
        results_cache_policy: Some(ours::ResultsCachePolicy { priority: 2 }),
        digest_function: 1,
        inline_stdout: true,
        inline_stderr: true,
        inline_output_files: vec!["f".into()],
    });
    same::<_, theirs::CacheCapabilities>(&ours::CacheCapabilities {
        digest_functions: vec![1, 9],
        action_cache_update_capabilities: Some(ours::ActionCacheUpdateCapabilities { update_enabled: true }),
        max_batch_total_size_bytes: 5,
        symlink_absolute_path_strategy: 1,
        supported_compressors: vec![1],
        supported_batch_update_compressors: vec![1],
        max_cas_blob_size_bytes: 6,
        ..Default::default()
    });
}
