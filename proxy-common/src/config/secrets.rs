//! Secrets: given as a value or as a file, never printed.

use std::{fs, path::Path};

use secrecy::{ExposeSecret, SecretString};

use super::error::ConfigError;

/// Reads a file that may hold secrets.
///
/// # Errors
///
/// The file cannot be read. The error names the variable.
pub fn read_secret_file(variable: &str, path: &Path) -> Result<SecretString, ConfigError> {
    fs::read_to_string(path).map(SecretString::from).map_err(|error| {
        let expected = format!("expected a readable file: {error}");
        ConfigError::invalid(variable, path.display(), expected)
    })
}

/// Reads a secret from a value or from a file, and removes the blanks around it. An empty value
/// counts as none.
///
/// # Errors
///
/// Both are set, or the file cannot be read or is empty.
pub fn secret(
    variable: &str,
    value: Option<&SecretString>,
    file: Option<&Path>,
) -> Result<Option<SecretString>, ConfigError> {
    let file_variable = format!("{variable}_FILE");
    // A variable may be present but empty, as in a copied example.
    let value = value.filter(|value| !value.expose_secret().trim().is_empty());
    let secret = match (value, file) {
        (Some(_), Some(_)) => {
            return Err(ConfigError::both(variable));
        }
        (None, None) => return Ok(None),
        (Some(value), None) => value.clone(),
        (None, Some(path)) => read_secret_file(&file_variable, path)?,
    };
    let trimmed = secret.expose_secret().trim();
    if trimmed.is_empty() {
        return Err(ConfigError::missing(&file_variable, "a file that holds a key"));
    }
    Ok(Some(SecretString::from(trimmed)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_secret_comes_as_a_value_or_as_a_file() {
        let value: SecretString = "k".into();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "from-file").unwrap();
        let read = |value, file| {
            secret("KEY", value, file).map(|s| s.map(|s| s.expose_secret().to_owned()))
        };
        assert_eq!(read(None, None), Ok(None));
        assert_eq!(read(Some(&value), None), Ok(Some("k".to_owned())));
        assert_eq!(read(None, Some(file.path())), Ok(Some("from-file".to_owned())));
        let both = read(Some(&value), Some(file.path())).unwrap_err();
        assert_eq!(both.to_string(), "KEY: set beside KEY_FILE: expected one of them");
        let nothing = SecretString::from(" ");
        assert_eq!(read(Some(&nothing), None), Ok(None));
        assert_eq!(read(Some(&nothing), Some(file.path())), Ok(Some("from-file".to_owned())));
        let padded = SecretString::from(" k\t");
        assert_eq!(read(Some(&padded), None), Ok(Some("k".to_owned())));
        assert!(
            read(None, Some(Path::new("/no/such/file"))).unwrap_err().to_string().starts_with(
                "KEY_FILE: invalid value \"/no/such/file\": expected a readable file: "
            )
        );
    }
}
