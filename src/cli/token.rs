//! `mmapd token`: makes a token and shows what of it goes into which file.

use super::exit::Fatal;
use super::print;
use crate::auth::{Hash, new_token};

/// What the token is for.
#[derive(Debug, clap::Args)]
pub(super) struct TokenArgs {
    /// Who will have it; shown in the audit log
    #[arg(long, default_value = "NAME")]
    name: String,
    /// A role of the file of tokens; may be repeated
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// Make a secret for nodes instead: the contents of auth.peer_secret
    #[arg(long, conflicts_with_all = ["name", "roles"])]
    peer: bool,
}

/// Prints a new token. Nothing else keeps it.
pub(super) fn token(args: &TokenArgs) -> Result<(), Fatal> {
    let failed = |error| Fatal::failure(format!("the system has no chance to give: {error}"));
    let token = new_token().map_err(failed)?;
    if args.peer {
        return print(&format!("{token}\n"));
    }
    let roles = if args.roles.is_empty() { vec!["ROLE".to_owned()] } else { args.roles.clone() };
    let entry = toml::Table::from_iter([
        ("name".to_owned(), args.name.clone().into()),
        ("sha256".to_owned(), Hash::of(token.as_bytes()).to_string().into()),
        ("roles".to_owned(), roles.into()),
    ]);
    print(&format!(
        "# Give this to {name}; it is shown once:\n{token}\n\n\
         # Add this to the file that auth.tokens names, and send SIGHUP:\n[[tokens]]\n{entry}\n\
         # Roles look like this; verbs are read, write, lease, lock, observe, operate:\n\
         # [[roles]]\n# name = \"{role}\"\n\
         # rights = [{{ verbs = [\"read\", \"write\"], prefix = \"app/\" }}, {{ verbs = [\"lease\"] }}]\n",
        name = args.name,
        role = args.roles.first().map_or("ROLE", String::as_str),
    ))
}
