//! A file of one hour: JSON lines, compressed with zstd. It can be read up to the last second while
//! it is written, and after a power cut.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use memchr::memchr;
use zstd::Encoder;

/// The end of the names of finished and unfinished files.
pub(super) const ENDING: &str = ".jsonl.zst";
/// Fast enough for the busiest market on a part of a core.
const LEVEL: i32 = 3;
const HOUR: u64 = 3_600;

/// A file that is being written.
pub(super) struct HourFile {
    hour: u64,
    path: PathBuf,
    encoder: Encoder<'static, Counted>,
}

/// Counts the bytes that go to the disk.
struct Counted {
    file: File,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn hour(at: SystemTime) -> u64 {
    since_epoch(at).as_secs() / HOUR
}

impl HourFile {
    /// Makes the file of the hour of this time. Its name is the time, in UTC:
    /// `2026-11-27T14-30-05Z.jsonl.zst`.
    pub(super) fn create(dir: &Path, at: SystemTime) -> io::Result<Self> {
        let name = humantime::format_rfc3339_seconds(at).to_string().replace(':', "-");
        let mut path = dir.join(format!("{name}{ENDING}"));
        // After a clock went back, or a restart within a second.
        for number in 2.. {
            if !path.try_exists()? {
                break;
            }
            path = dir.join(format!("{name}-{number}{ENDING}"));
        }
        let file = File::create_new(&path)?;
        // Without this a power cut may take the name, and all that stands under it.
        File::open(dir)?.sync_all()?;
        let encoder = Encoder::new(Counted { file, bytes: 0 }, LEVEL)?;
        Ok(Self { hour: hour(at), path, encoder })
    }

    /// Whether this is the file of the hour of this time.
    pub(super) fn is_of(&self, at: SystemTime) -> bool {
        self.hour == hour(at)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a frame that came at this time. The frame stands as it came under `frame`; one that
    /// holds a line break stands as a string under `text`.
    pub(super) fn add(&mut self, at: SystemTime, frame: &[u8]) -> io::Result<()> {
        let ns = since_epoch(at).as_nanos();
        if memchr(b'\n', frame).is_none() {
            write!(self.encoder, "{{\"t\":{ns},\"frame\":")?;
            self.encoder.write_all(frame)?;
        } else {
            write!(self.encoder, "{{\"t\":{ns},\"text\":")?;
            serde_json::to_writer(&mut self.encoder, &String::from_utf8_lossy(frame))?;
        }
        self.encoder.write_all(b"}\n")
    }

    /// Brings everything to the disk. Returns how many bytes the file has.
    pub(super) fn sync(&mut self) -> io::Result<u64> {
        self.encoder.flush()?;
        self.encoder.get_ref().file.sync_data()?;
        Ok(self.encoder.get_ref().bytes)
    }

    /// Ends the file. Returns how many bytes it has.
    pub(super) fn finish(self) -> io::Result<u64> {
        let Counted { file, bytes } = self.encoder.finish()?;
        file.sync_all()?;
        Ok(bytes)
    }
}
