//! Nothing is compiled from here: `cargo vendor` brings the sources.
