//! Reads from the sources which module of a crate imports which. The tests check with it that rooms
//! import only rooms below them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The name of a crate's root among its modules.
pub const ROOT: &str = "crate";

/// The modules of one crate and what each imports.
///
/// A module is named by its path, such as `link::login`; the root is [`ROOT`]. A parent imports
/// each of its children. Unit tests and comments do not count.
#[derive(Debug)]
pub struct Imports(BTreeMap<String, BTreeSet<String>>);

impl Imports {
    /// Reads the crate whose root file is `root`, such as `src/lib.rs`.
    ///
    /// # Panics
    ///
    /// A file cannot be read.
    #[must_use]
    pub fn of_crate(root: &Path) -> Self {
        let dir = root.parent().expect("a root file stands in a folder");
        let mut sources = vec![(ROOT.to_owned(), read(root))];
        let mut folders = vec![(dir.to_owned(), Vec::new())];
        while let Some((folder, path)) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("read a folder of sources") {
                let file = entry.expect("a file").path();
                let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
                let path: Vec<String> = path.iter().cloned().chain([name.to_owned()]).collect();
                if file.is_dir() {
                    folders.push((file, path));
                } else if file.extension().is_some_and(|extension| extension == "rs")
                    && !(folder == dir && matches!(name, "lib" | "main"))
                {
                    sources.push((path.join("::"), read(&file)));
                }
            }
        }
        Self::of_sources(sources)
    }

    /// Reads modules given by name and source text.
    #[must_use]
    pub fn of_sources(sources: impl IntoIterator<Item = (String, String)>) -> Self {
        let sources: BTreeMap<String, String> = sources.into_iter().collect();
        let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (module, source) in &sources {
            let found = imports.entry(module.clone()).or_default();
            for path in paths(&without_unit_tests(source)) {
                let imported = resolve(module, &path, |name| sources.contains_key(name));
                if imported != *module {
                    found.insert(imported);
                }
            }
        }
        for module in sources.keys().filter(|module| *module != ROOT) {
            let parent = module.rsplit_once("::").map_or(ROOT, |(parent, _)| parent);
            imports.entry(parent.to_owned()).or_default().insert(module.clone());
        }
        Self(imports)
    }

    /// The names of the modules.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Circles of imports, one for each import that closes one. Each lists its modules in order.
    #[must_use]
    pub fn circles(&self) -> Vec<Vec<String>> {
        let mut circles = Vec::new();
        let mut done = BTreeSet::new();
        for module in self.0.keys() {
            self.visit(module, &mut Vec::new(), &mut done, &mut circles);
        }
        circles
    }

    fn visit<'a>(
        &'a self,
        module: &'a str,
        trail: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
        circles: &mut Vec<Vec<String>>,
    ) {
        if let Some(start) = trail.iter().position(|passed| *passed == module) {
            circles.push(trail[start..].iter().map(ToString::to_string).collect());
            return;
        }
        if done.contains(module) {
            return;
        }
        trail.push(module);
        for imported in self.0.get(module).into_iter().flatten() {
            self.visit(imported, trail, done, circles);
        }
        trail.pop();
        done.insert(module);
    }

    /// Imports between top-level rooms that a table does not allow, as `importer -> imported`.
    ///
    /// The table names every room of the crate, each with the rooms that it may import. The root
    /// may import all of them.
    #[must_use]
    pub fn against(&self, table: &[(&str, &[&str])]) -> Vec<String> {
        let room = |module: &str| module.split("::").next().unwrap_or_default().to_owned();
        let mut found = Vec::new();
        for (module, imports) in self.0.iter().filter(|(module, _)| *module != ROOT) {
            let Some((_, allowed)) = table.iter().find(|(name, _)| *name == room(module)) else {
                found.push(format!("{module} stands in no room of the table"));
                continue;
            };
            let foreign = imports.iter().filter(|imported| room(imported) != room(module));
            found.extend(
                foreign
                    .filter(|imported| !allowed.contains(&room(imported).as_str()))
                    .map(|imported| format!("{module} -> {imported}")),
            );
        }
        let missing = table.iter().filter(|(name, _)| self.0.keys().all(|m| room(m) != *name));
        found.extend(missing.map(|(name, _)| format!("the table names {name}, which is no room")));
        found
    }
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn without_unit_tests(source: &str) -> String {
    source.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
}

/// The module that a path leads into: the longest beginning of it that is a module.
fn resolve(module: &str, path: &[String], is_module: impl Fn(&str) -> bool) -> String {
    let mut base: Vec<&str> = match path.first().map(String::as_str) {
        Some("crate") => Vec::new(),
        _ if module == ROOT => Vec::new(),
        _ => module.split("::").collect(),
    };
    let mut rest = path;
    while let Some((first, others)) = rest.split_first() {
        match first.as_str() {
            "super" => _ = base.pop(),
            "self" | "crate" => {}
            _ => break,
        }
        rest = others;
    }
    for segment in rest {
        let longer = base.iter().copied().chain([segment.as_str()]).collect::<Vec<_>>().join("::");
        if !is_module(&longer) {
            break;
        }
        base.push(segment);
    }
    if base.is_empty() { ROOT.to_owned() } else { base.join("::") }
}

/// Every path in a source text that begins with `crate`, `super` or `self`, those of grouped `use`
/// declarations one by one.
fn paths(source: &str) -> Vec<Vec<String>> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let before = at.checked_sub(1).map(|before| tokens[before].as_str());
        let begins = matches!(tokens[at].as_str(), "crate" | "super" | "self")
            && before != Some("::")
            && tokens.get(at + 1).is_some_and(|next| next == "::");
        at = if begins { path(&tokens, at, &mut Vec::new(), &mut found) } else { at + 1 };
    }
    found
}

/// Reads one path or group of paths, and returns the position after it.
fn path(
    tokens: &[String],
    mut at: usize,
    prefix: &mut Vec<String>,
    found: &mut Vec<Vec<String>>,
) -> usize {
    let depth = prefix.len();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    let next = path(tokens, at, prefix, found);
                    // Skips a token that begins no path, such as a comma.
                    at = next.max(at + 1);
                }
                at += 1;
                break;
            }
            Some(name) if name.chars().all(|c| c.is_alphanumeric() || c == '_') => {
                prefix.push(name.to_owned());
                at += 1;
                if tokens.get(at).is_none_or(|next| next != "::") {
                    found.push(prefix.clone());
                    break;
                }
                at += 1;
            }
            _ => {
                if prefix.len() > depth {
                    found.push(prefix.clone());
                }
                break;
            }
        }
    }
    prefix.truncate(depth);
    at
}

/// Names, `::` and single characters, without comments and literals.
fn tokens(source: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(length) = raw_string_length(rest) {
            length
        } else if first == '"' {
            string_length(rest)
        } else if rest.starts_with("'\"'") {
            3
        } else if first.is_alphanumeric() || first == '_' {
            let end = |c: char| !(c.is_alphanumeric() || c == '_');
            let length = rest.find(end).unwrap_or(rest.len());
            tokens.push(rest[..length].to_owned());
            length
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// The length of the string literal at the beginning, its quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// The length of a raw string literal such as `br#"["]"#`; `None` if the text begins with none.
fn raw_string_length(text: &str) -> Option<usize> {
    let after_r = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after_r.bytes().take_while(|&byte| byte == b'#').count();
    let body = after_r[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end)?;
    Some(text.len() - body.len() + length + end.len())
}
