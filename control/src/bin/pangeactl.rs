//! `pangeactl`: reads its command line, does it, says how it went.

use std::process::ExitCode;

use clap::Parser;
use pangea_control::ctl::arguments::Arguments;
use pangea_control::ctl::output::CtlError;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") => {
            // A script reads one document, also of a command line that is wrong.
            let text = error.to_string();
            let told = CtlError::usage(text.trim_start_matches("error: ").trim_end());
            told.print(true);
            return ExitCode::from(told.exit_status());
        }
        Err(error) => error.exit(),
    };
    let json = arguments.json;
    match pangea_control::ctl::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print(json);
            ExitCode::from(error.exit_status())
        }
    }
}
