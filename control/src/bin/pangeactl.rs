//! `pangeactl`: reads its command line, does it, says how it went.

use std::process::ExitCode;

use clap::Parser;
use pangea_control::ctl::arguments::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    match pangea_control::ctl::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print(json);
            ExitCode::from(error.exit_status())
        }
    }
}
