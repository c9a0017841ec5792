//! The `.env`: finds it, loads it into the environment, and says where it is wrong.

use std::{
    cell::Cell,
    collections::HashSet,
    env, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::config::ConfigError;

/// A `.env` that was read.
pub(super) struct Dotenv {
    /// Where it is.
    pub(super) path: PathBuf,
    /// The names of its lines, in order.
    pub(super) names: Vec<String>,
    /// Those of them that were not set already.
    pub(super) loaded: HashSet<String>,
}

/// Loads the nearest `.env` in the working directory or above it. A variable that is set already
/// stays as it is, and of two lines with one name the first counts.
///
/// # Errors
///
/// The file cannot be read, or a line has another form. The error names the file and the number of
/// the line, but shows no text, which may hold a key.
pub(super) fn load() -> Result<Option<Dotenv>, ConfigError> {
    let Ok(start) = env::current_dir() else { return Ok(None) };
    // A directory of this name is most likely a virtual environment of Python.
    let Some(path) = start.ancestors().map(|dir| dir.join(".env")).find(|path| path.is_file())
    else {
        return Ok(None);
    };
    let bytes = fs::read(&path).map_err(|error| fault(&path, error))?;
    let names = names(&bytes).map_err(|why| fault(&path, why))?;
    let loaded = names.iter().filter(|name| env::var_os(name).is_none()).cloned().collect();
    dotenvy::from_read(bytes.as_slice()).map_err(|_| fault(&path, "it cannot be loaded"))?;
    Ok(Some(Dotenv { path, names, loaded }))
}

fn fault(path: &Path, why: impl std::fmt::Display) -> ConfigError {
    ConfigError::other(format!("{}: {why}", path.display()))
}

/// The names of all lines.
fn names(bytes: &[u8]) -> Result<Vec<String>, String> {
    if let Err(error) = str::from_utf8(bytes) {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
        return Err(format!("line {line}: expected text in UTF-8"));
    }
    let read = Cell::new(0);
    // The loader skips the mark of an editor on Windows, the iterator does not.
    let rest = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let lines = dotenvy::from_read_iter(LineReader { rest, read: &read });
    let name = |line: dotenvy::Result<(String, String)>| match line {
        Ok((name, _)) => Ok(name),
        Err(dotenvy::Error::LineParse(text, _)) => {
            // The fault of an open quote is where the quote begins, not where the file ends.
            let line = read.get() - text.lines().count().saturating_sub(1);
            Err(format!(
                "line {line}: expected NAME=value, with quotes around a value that holds blanks"
            ))
        }
        Err(_) => Err(format!("line {}: it cannot be read", read.get())),
    };
    lines.map(name).collect()
}

/// Hands out one line for each read, so that the count of lines is that of the parser.
struct LineReader<'a> {
    rest: &'a [u8],
    read: &'a Cell<usize>,
}

impl Read for LineReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let line = self.rest.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
        let (n, is_end) = match line.unwrap_or(self.rest.len()) {
            line if line <= buffer.len() => (line, line > 0),
            _ => (buffer.len(), false),
        };
        let (now, rest) = self.rest.split_at(n);
        buffer[..n].copy_from_slice(now);
        self.rest = rest;
        self.read.set(self.read.get() + usize::from(is_end));
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_order_in_every_spelling() {
        let text = "\u{feff}A=1\r\n# C=3\n\n export B = '2\nD=4'\nC=\"x\\\"#\" # end\nA=2";
        assert_eq!(names(text.as_bytes()), Ok(["A", "B", "C", "A"].map(str::to_owned).to_vec()));
        assert_eq!(names(b""), Ok(vec![]));
    }

    #[test]
    fn a_fault_names_its_line() {
        let long = format!("A={}\nB c", "x".repeat(20_000));
        for (text, line) in [
            ("s3cret", 1),
            ("A=1\n# B\n\ns3cret with blanks\nC=1\n", 4),
            ("A=1\r\nB=s3cret two\r\nC=1\r\n", 2),
            ("A=1\nB=\"s3cret\nC=1\nD=1\n", 2),
            ("A='1\n2\n3'\nB: s3cret", 4),
            ("A='1\n2'x y\n", 1),
            ("A=1\nB=${s3cret\n", 2),
            ("A=1\n=s3cret\n", 2),
            (&long, 2),
        ] {
            let fault = names(text.as_bytes()).unwrap_err();
            assert!(fault.starts_with(&format!("line {line}: expected ")), "{text:?}: {fault}");
            assert!(!fault.contains("s3cret"), "{fault}");
        }
        let utf16: Vec<_> = "A=1".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let marked = [b"\xff\xfe".as_slice(), &utf16].concat();
        assert!(names(&marked).unwrap_err().starts_with("line 1: expected text in UTF-8"));
        assert!(names(b"A=1\nB=\xff\n").unwrap_err().starts_with("line 2: "));
    }
}
