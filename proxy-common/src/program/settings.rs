//! The settings in force and where each comes from.

use std::{fmt, path::PathBuf};

use clap::{Arg, ArgMatches, Command, parser::ValueSource};
use url::Url;

use super::dotenv::Dotenv;
use crate::link::redacted;

/// A setting that has a value, as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its variable.
    pub name: String,
    /// Its value. Secrets are left out.
    pub value: String,
    /// Where the value comes from.
    pub source: Source,
}

/// Where the value of a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This flag.
    Flag(String),
    /// A variable of the environment.
    Variable,
    /// A line of this `.env`.
    Dotenv(PathBuf),
    /// Nothing sets it.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Variable => f.write_str("environment"),
            Self::Dotenv(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// All settings of a program that have a value, in the order of `--help`.
pub(super) fn in_force(
    command: &Command,
    matches: &ArgMatches,
    dotenv: Option<&Dotenv>,
) -> Vec<Setting> {
    let is_set = |variable: &str| {
        let mut args = command.get_arguments();
        let arg = args.find(|arg| arg.get_env().is_some_and(|name| name == variable));
        arg.is_some_and(|arg| matches.contains_id(arg.get_id().as_str()))
    };
    let settings = command.get_arguments().filter_map(|arg| {
        let name = arg.get_env()?.to_string_lossy().into_owned();
        let source = match matches.value_source(arg.get_id().as_str()) {
            Some(ValueSource::CommandLine) => {
                Source::Flag(format!("--{}", arg.get_long().unwrap_or_default()))
            }
            Some(ValueSource::EnvVariable) => match dotenv {
                Some(dotenv) if dotenv.loaded.contains(&name) => {
                    Source::Dotenv(dotenv.path.clone())
                }
                _ => Source::Variable,
            },
            _ => Source::Default,
        };
        let value = match matches.get_raw(arg.get_id().as_str()) {
            Some(raw) => shown(
                arg,
                matches,
                &raw.map(|raw| raw.to_string_lossy()).collect::<Vec<_>>().join(" "),
            ),
            // A secret in a file leaves no room for the default.
            None if is_set(&format!("{name}_FILE")) => return None,
            None => default_in_help(arg)?,
        };
        Some(Setting { name, value, source })
    });
    settings.collect()
}

/// A value as it may be shown. What `--help` hides may hold a secret: of a URL the parts that
/// cannot are shown, of anything else nothing.
fn shown(arg: &Arg, matches: &ArgMatches, value: &str) -> String {
    let hidden = arg.is_hide_env_values_set();
    let id = arg.get_id().as_str();
    if let Ok(Some(urls)) = matches.try_get_one::<Vec<Url>>(id) {
        return urls.iter().map(redacted).collect::<Vec<_>>().join(",");
    }
    match matches.try_get_one::<Url>(id) {
        Ok(Some(url)) => redacted(url),
        _ if value.trim().is_empty() => "(empty)".to_owned(),
        _ if hidden => "(not shown)".to_owned(),
        _ => value.to_owned(),
    }
}

/// The value that the program uses if nothing sets it, as `--help` says it.
fn default_in_help(arg: &Arg) -> Option<String> {
    let help = arg.get_help()?.to_string();
    let (_, default) = help.split_once("[default: ")?;
    default.split(']').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::{CommandFactory, Parser};
    use secrecy::SecretString;

    use super::*;

    #[derive(Debug, Parser)]
    struct Args {
        /// A number [default: none]
        #[arg(long, env = "IN_FORCE_NUMBER")]
        number: Option<u16>,
        /// A secret [default: another]
        #[arg(long, env = "IN_FORCE_SECRET", hide_env_values = true)]
        secret: Option<SecretString>,
        #[arg(long, env = "IN_FORCE_SECRET_FILE")]
        secret_file: Option<PathBuf>,
        #[arg(long, env = "IN_FORCE_URL", hide_env_values = true)]
        url: Option<Url>,
        #[arg(long, env = "IN_FORCE_TEXT", default_value = "a text")]
        text: String,
        #[arg(long)]
        without_variable: bool,
    }

    fn of(flags: &[&str]) -> Vec<String> {
        let flags = std::iter::once("program").chain(flags.iter().copied());
        let matches = Args::command().try_get_matches_from(flags).unwrap();
        let dotenv = Dotenv { path: ".env".into(), names: vec![], loaded: HashSet::new() };
        let settings = in_force(&Args::command(), &matches, Some(&dotenv)).into_iter();
        let line = |Setting { name, value, source }| {
            format!("{}={value} by {source}", name.trim_start_matches("IN_FORCE_"))
        };
        settings.map(line).collect()
    }

    #[test]
    fn each_setting_shows_its_value_and_source_but_no_secret() {
        let (number, text) = ("NUMBER=none by default", "TEXT=a text by default");
        assert_eq!(of(&[]), [number, "SECRET=another by default", text]);
        let file = "SECRET_FILE=f by flag --secret-file";
        assert_eq!(of(&["--secret-file=f"]), [number, file, text]);
        let flags = [
            "--number=1",
            "--secret=s3cret",
            "--url=wss://s3cret@a.example/x?apiKey=s3cret",
            "--text=t",
            "--without-variable",
        ];
        let expected = [
            "NUMBER=1 by flag --number",
            "SECRET=(not shown) by flag --secret",
            "URL=wss://a.example/x by flag --url",
            "TEXT=t by flag --text",
        ];
        assert_eq!(of(&flags), expected);
        assert_eq!(of(&["--secret= "])[1], "SECRET=(empty) by flag --secret");
    }
}
