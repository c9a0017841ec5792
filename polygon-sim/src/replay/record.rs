//! Reads recorded files: JSON lines, compressed with zstd. A file that was cut off is read up to
//! its last whole line.

use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::value::RawValue;
use zstd::Decoder;

/// Most bytes of a line. A frame has 64 MiB at most, and twice as many if each byte is escaped.
const MAX_LINE_BYTES: u64 = 256 << 20;

/// A recorded frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Recorded {
    /// When it came, in nanoseconds since 1970.
    pub t: u64,
    /// Its bytes.
    pub text: String,
}

/// A line as it is written.
#[derive(Deserialize)]
struct Line<'a> {
    t: u64,
    /// The frame as it came.
    #[serde(borrow)]
    frame: Option<&'a RawValue>,
    /// The frame as a string.
    text: Option<String>,
}

/// The recorded files of a directory, oldest first.
pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).context("failed to read the recording")? {
        let path = entry.context("failed to read the recording")?.path();
        if path.to_string_lossy().ends_with(".jsonl.zst") {
            files.push(path);
        }
    }
    // Names begin with their times.
    files.sort();
    Ok(files)
}

/// Passes each frame of a file to `take`, until that returns false.
pub(super) fn read(path: &Path, take: impl FnMut(Recorded) -> bool) -> Result<()> {
    let file = File::open(path)?;
    read_lines(file, take)
}

/// The same for any compressed bytes.
///
/// # Errors
/// They are damaged, or a whole line is no recorded frame.
pub fn read_lines(file: impl Read, mut take: impl FnMut(Recorded) -> bool) -> Result<()> {
    let mut lines = BufReader::new(Decoder::new(file)?);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        match lines.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // The file is still being written, or its program was killed.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error).context("not a recorded file"),
        }
        ensure!((line.len() as u64) < MAX_LINE_BYTES, "line {number} is too long");
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        let Line { t, frame, text } = parse(&line).with_context(|| format!("line {number}"))?;
        let text = frame.map(|frame| frame.get().to_owned()).or(text);
        let text = text.with_context(|| format!("line {number} has neither frame nor text"))?;
        if !take(Recorded { t, text }) {
            return Ok(());
        }
    }
    Ok(())
}

fn parse(line: &[u8]) -> Result<Line<'_>> {
    let line = str::from_utf8(line)?;
    // The parser would also take the values without their names, in an array.
    ensure!(line.trim_start().starts_with('{'), "no object");
    Ok(serde_json::from_str(line)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read_whole(bytes: &[u8]) -> Result<Vec<Recorded>> {
        let mut all = Vec::new();
        read_lines(bytes, |recorded| {
            all.push(recorded);
            true
        })
        .map(|()| all)
    }

    #[test]
    fn a_record_cut_at_any_byte_is_read_to_a_whole_line_and_never_fails() {
        let texts: Vec<String> = (0..40).map(|n| format!(r#"[{{"ev":"T","p":1.{n}0}}]"#)).collect();
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        for (t, text) in (7_u64..).zip(&texts) {
            writeln!(encoder, r#"{{"t":{t},"frame":{text}}}"#).unwrap();
            if t % 5 == 0 {
                encoder.flush().unwrap();
            }
        }
        let bytes = encoder.finish().unwrap();
        let whole = read_whole(&bytes).unwrap();
        assert_eq!(
            whole.iter().map(|one| &one.text).collect::<Vec<_>>(),
            texts.iter().collect::<Vec<_>>()
        );
        assert_eq!((whole[0].t, whole[39].t), (7, 46));
        let mut most = 0;
        for cut in 0..bytes.len() {
            let got = read_whole(&bytes[..cut]).unwrap_or_else(|error| panic!("{cut}: {error:#}"));
            assert_eq!(got, whole[..got.len()], "cut at {cut}");
            most = most.max(got.len());
        }
        assert!(most >= 34, "{most}: all that was flushed but the end");
    }

    #[test]
    fn a_frame_with_line_breaks_stands_as_a_string() {
        let line = b"{\"t\":1,\"text\":\"[\\n{} ]\"}\n";
        let got = read_whole(&zstd::encode_all(&line[..], 3).unwrap()).unwrap();
        assert_eq!(got, [Recorded { t: 1, text: "[\n{} ]".to_owned() }]);
    }

    #[test]
    fn other_files_are_named() {
        for (content, expected) in [
            ("{\"t\":1}\n", "line 1 has neither"),
            ("{\"t\":1,\"frame\":[]}\n{}\n", "line 2"),
            ("[1,[],null]\n", "line 1: no object"),
        ] {
            let error = read_whole(&zstd::encode_all(content.as_bytes(), 3).unwrap()).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
        assert!(read_whole(b"no zstd at all").is_err());
    }
}
