//! The worker program as a shell sees it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
fn wrong_usage_is_told_from_failure() {
    let worker = env!("CARGO_BIN_EXE_pangea-worker");
    assert_eq!(Command::new(worker).output().unwrap().status.code(), Some(2));
    let fixed = ["--index", "0", "--state-dir", "/proc/none", "--runtime-dir", "/proc/none"];
    let output = Command::new(worker).args(fixed).args(["--data-listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/proc/none"));
}
