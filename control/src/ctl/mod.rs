//! `pangeactl`: the operator's hand on a node.
//!
//! | file | commands |
//! |---|---|
//! | [`arguments`] | the command line |
//! | [`transfer`] | `put`, `get` |
//! | [`inspect`] | `id`, `ls`, `status`, `workers`, `peer ls`, `policy show|history|watch` |
//! | [`change`] | `rm`, `pin`, `unpin`, `ticket`, `verify`, `peer`, `policy`, `worker` |
//! | [`demo`] | `demo`: two nodes on this machine |
//! | [`output`] | text for people, JSON for scripts, exit status |

pub mod arguments;
pub mod change;
pub mod demo;
mod demo_folder;
pub mod inspect;
pub mod output;
pub mod transfer;

use pangea_client::Client;

use self::arguments::{Arguments, Command};
use self::output::{CtlError, Output};

/// Does what the command line says.
///
/// # Errors
/// When it could not be done; says the exit status too.
pub fn run(arguments: Arguments) -> Result<(), CtlError> {
    let out = Output { json: arguments.json };
    let runtime_dir = arguments.runtime_dir.unwrap_or_else(crate::folders::runtime_dir);
    let connect = || Client::connect(&runtime_dir).map_err(CtlError::from);
    match arguments.command {
        Command::Completions { shell } => {
            let script = arguments::completions(shell);
            out.print(&serde_json::json!({"script": script}), || script.clone())
        }
        Command::Demo(options) => demo::run(&out, &options),
        Command::Id => inspect::id(&out, &connect()?),
        Command::Put(options) => transfer::put(&out, &connect()?, &options),
        Command::Get(options) => transfer::get(&out, &connect()?, &options),
        Command::Ticket { id, valid } => change::ticket(&out, &connect()?, id, valid),
        Command::Ls => inspect::list(&out, &connect()?),
        Command::Rm { id } => change::remove(&out, &connect()?, id),
        Command::Pin { id } => change::pin(&out, &connect()?, id),
        Command::Unpin { id } => change::unpin(&out, &connect()?, id),
        Command::Verify { id } => change::verify(&out, &connect()?, id),
        Command::Status => inspect::status(&out, &connect()?),
        Command::Workers => inspect::workers(&out, &connect()?),
        Command::Peer { command } => change::peer(&out, &connect()?, command),
        Command::Policy { command } => change::policy(&out, &connect()?, command),
        Command::Worker { command } => change::worker(&out, &connect()?, command),
    }
}
