//! `pangea-controller`: reads its settings, sets up its log, runs.

use std::process::ExitCode;

use clap::Parser;
use pangea_control::controller::run::run;
use pangea_control::controller::settings::{Arguments, FAULTS_VARIABLE, LogFormat};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let faults_allowed = std::env::var(FAULTS_VARIABLE).is_ok_and(|value| value == "1");
    let settings = match Arguments::parse().check(faults_allowed) {
        Ok(settings) => settings,
        Err(text) => return fail(2, &text),
    };
    if let Err(text) = pangea_ipc::log_filter::check(&settings.log) {
        return fail(2, &text);
    }
    let filter = match EnvFilter::builder().parse(&settings.log) {
        Ok(filter) => filter,
        Err(error) => return fail(2, &format!("--log {:?}: {error}", settings.log)),
    };
    if settings.check_only {
        println!("the configuration is right");
        return ExitCode::SUCCESS;
    }
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    match run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error.to_string()),
    }
}

fn fail(code: u8, text: &str) -> ExitCode {
    eprintln!("pangea-controller: {text}");
    ExitCode::from(code)
}
