//! An attempt's result as REAPI and this house tell it. Looks at nothing.

use std::time::SystemTime;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::buildnet::v1 as own;
use buildnet_stage::Written;
use prost::Message;
use prost_types::{Any, Duration, Timestamp};

use crate::order::{Ending, Order};

/// Moments of ExecutedActionMetadata.
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) worker_start: Option<Timestamp>,
    pub(crate) worker_completed: Option<Timestamp>,
    pub(crate) input_fetch_start: Option<Timestamp>,
    pub(crate) input_fetch_completed: Option<Timestamp>,
    pub(crate) execution_start: Option<Timestamp>,
    pub(crate) execution_completed: Option<Timestamp>,
    pub(crate) output_upload_start: Option<Timestamp>,
    pub(crate) output_upload_completed: Option<Timestamp>,
}

pub(crate) fn now() -> Option<Timestamp> {
    Some(SystemTime::now().into())
}

/// The encoded ActionResult of `result`, which has outputs and logs.
pub(crate) fn encode(
    mut result: re::ActionResult,
    order: &Order,
    ending: &Ending,
    times: Times,
    written: &Written,
    node: &str,
) -> Vec<u8> {
    result.exit_code = ending.exit_code;
    let usage = own::Usage {
        user_cpu: Some(seconds(ending.user_s)),
        system_cpu: Some(seconds(ending.system_s)),
        max_rss_bytes: ending.max_rss_bytes,
    };
    result.execution_metadata = Some(re::ExecutedActionMetadata {
        worker: node.to_owned(),
        worker_start_timestamp: times.worker_start,
        worker_completed_timestamp: times.worker_completed,
        input_fetch_start_timestamp: times.input_fetch_start,
        input_fetch_completed_timestamp: times.input_fetch_completed,
        execution_start_timestamp: times.execution_start,
        execution_completed_timestamp: times.execution_completed,
        // The clock that the timeout is measured with (REAPI virtual_execution_duration).
        virtual_execution_duration: Some(seconds(ending.wall_s)),
        output_upload_start_timestamp: times.output_upload_start,
        output_upload_completed_timestamp: times.output_upload_completed,
        auxiliary_metadata: vec![
            packed("type.googleapis.com/buildnet.v1.Usage", &usage),
            packed("type.googleapis.com/buildnet.v1.EffectReport", &effects(order, ending, written)),
        ],
        ..Default::default()
    });
    result.encode_to_vec()
}

fn effects(order: &Order, ending: &Ending, written: &Written) -> own::EffectReport {
    let grant = |grant: &crate::order::Grant| own::EffectGrant {
        name: grant.name.clone(),
        level: grant.level.clone(),
        enforced: grant.enforced,
    };
    let mut effects: Vec<_> = order.effects.iter().map(grant).collect();
    effects.sort_unstable_by(|first, second| first.name.cmp(&second.name));
    let kept = |(name, by): &(String, String)| own::LimitKept { name: name.clone(), by: by.clone() };
    let mut limits: Vec<_> = ending.limits.iter().map(kept).collect();
    limits.sort_unstable_by(|first, second| first.name.cmp(&second.name));
    own::EffectReport {
        isolation: ending.isolation.clone(),
        effects,
        undeclared_writes: written.paths.clone(),
        undeclared_write_count: written.count,
        undeclared_writes_partial: !written.whole,
        limits,
        limit_hit: limit_hit(&ending.reason).to_owned(),
        gpus: order.gpus.clone(),
    }
}

/// The limit for which a command is ended with this reason, in the words of the contract.
fn limit_hit(reason: &str) -> &str {
    match reason {
        "timeout" => "wall",
        "log_limit" => "log",
        "memory" | "pids" | "cpu" | "disk" => reason,
        _ => "",
    }
}

fn packed(type_url: &str, message: &impl Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

/// A time that the kernel measured: finite and not negative.
fn seconds(time_s: f64) -> Duration {
    let nanos = (time_s.max(0.0) * 1e9).round() as i64;
    Duration { seconds: nanos / 1_000_000_000, nanos: (nanos % 1_000_000_000) as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole_nanoseconds() {
        assert_eq!(seconds(1.25), Duration { seconds: 1, nanos: 250_000_000 });
        assert_eq!(seconds(-1.0), Duration::default());
        assert_eq!(seconds(f64::NAN), Duration::default());
    }
}
