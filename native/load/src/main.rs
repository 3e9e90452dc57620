//! Load for any REAPI cache, and the floor under every such figure. An answer that is not verified is not counted.

#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::process::ExitCode;

mod actions;
mod arguments;
mod connection;
mod content;
mod floor;
mod histogram;
mod messages;
mod process;
mod report;
mod run;
mod socket;
mod verify;
mod work;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments::parse(&words) {
        Ok(arguments::Command::Floor(options)) => floor::serve(&options).map(|()| true),
        Ok(arguments::Command::Run(options)) => run::run(&options),
        Err(text) => Err(text),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(text) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
    }
}
