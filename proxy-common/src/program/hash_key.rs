//! The subcommand `hash-key`: the line for a key in a file of keys.

use std::io::{self, BufRead, IsTerminal};

use secrecy::{ExposeSecret, SecretString};

use super::command_line::StartupExit;
use crate::{access::key_file_line, config::ConfigError};

/// Reads a key from standard input, and returns its line for this label.
///
/// # Errors
///
/// Standard input holds no key.
pub(super) fn line(label: &str) -> Result<String, StartupExit> {
    let input = io::stdin().lock();
    if input.is_terminal() {
        ask();
    }
    let key = read_key(input)
        .map_err(|why| StartupExit::Error(ConfigError::invalid_secret("standard input", why)))?;
    Ok(key_file_line(label, &key) + "\n")
}

#[expect(clippy::print_stderr, reason = "a question to the user at the terminal")]
fn ask() {
    eprint!("key: ");
}

fn read_key(mut input: impl BufRead) -> Result<SecretString, String> {
    let mut line = String::new();
    input.read_line(&mut line).map_err(|error| format!("expected a key: {error}"))?;
    let key = SecretString::from(line);
    let trimmed = key.expose_secret().trim();
    if trimmed.is_empty() || trimmed.contains(char::is_whitespace) {
        return Err("expected one key on a line, without blanks in it".to_owned());
    }
    Ok(SecretString::from(trimmed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_key() {
        let read = |text: &str| read_key(text.as_bytes()).map(|key| key.expose_secret().to_owned());
        for text in ["k", "k\n", "k\r\n", " k \nmore\n"] {
            assert_eq!(read(text), Ok("k".to_owned()), "{text:?}");
        }
        for text in ["", "\n", "a b\n"] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }
}
