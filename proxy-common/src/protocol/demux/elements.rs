//! Finds the elements of a JSON array.

/// One element of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element<'a> {
    /// Its text, without the blanks around it. Empty if nothing stands between two commas.
    pub text: &'a [u8],
    /// The most brackets open at once in it, with the array's own.
    pub depth: usize,
}

/// Calls `visit` with each element of an array, in order. Returns whether the text is one array and
/// nothing else. If it ends inside the array, the last element is what is left of it.
///
/// Follows strings and brackets, and knows nothing else of JSON. So a damaged element whose quotes
/// and brackets match costs no other element.
pub fn elements<'a>(text: &'a [u8], mut visit: impl FnMut(Element<'a>)) -> bool {
    let mut bytes = text.iter().enumerate();
    let Some((first, _)) = bytes.find(|(_, byte)| **byte == b'[') else { return false };
    let (mut start, mut open, mut depth) = (first + 1, 1, 1);
    let mut end = None;
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => {
                while let Some((_, byte)) = bytes.next().filter(|(_, byte)| **byte != b'"') {
                    if *byte == b'\\' {
                        bytes.next();
                    }
                }
            }
            b'[' | b'{' => {
                open += 1;
                depth = depth.max(open);
            }
            b']' | b'}' if open > 1 => open -= 1,
            b']' => {
                end = Some(at);
                break;
            }
            b',' if open == 1 => {
                visit(Element { text: trim(&text[start..at]), depth });
                (start, depth) = (at + 1, 1);
            }
            _ => {}
        }
    }
    let last = trim(&text[start..end.unwrap_or(text.len())]);
    let follows_comma = start > first + 1;
    if !last.is_empty() || end.is_some() && follows_comma {
        visit(Element { text: last, depth });
    }
    let before = &text[..first];
    end.is_some_and(|end| trim(before).is_empty() && trim(&text[end + 1..]).is_empty())
}

/// The text without the blanks that JSON allows around it.
pub(super) fn trim(text: &[u8]) -> &[u8] {
    let is_text = |byte: &u8| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let start = text.iter().position(is_text).unwrap_or(text.len());
    let end = text.iter().rposition(is_text).map_or(start, |last| last + 1);
    &text[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_end_where_commas_stand_outside_strings_and_brackets() {
        for (text, expected, whole) in [
            ("[]", &[][..], true),
            (" [ \n] ", &[], true),
            ("[7]", &["7"], true),
            ("[7 , {\"a\":[1,2]},\t\"],[\"]\r\n", &["7", "{\"a\":[1,2]}", "\"],[\""], true),
            (r#"["\",","\\",{"x":"}"}]"#, &[r#""\",""#, r#""\\""#, r#"{"x":"}"}"#], true),
            ("[,]", &["", ""], true),
            ("[7,]", &["7", ""], true),
            ("[{}},{}]", &["{}}", "{}"], true),
            ("[\x0c7]", &["\x0c7"], true),
            ("", &[], false),
            ("7", &[], false),
            ("[", &[], false),
            ("[7,", &["7"], false),
            ("[7", &["7"], false),
            ("[7,{\"a\"", &["7", "{\"a\""], false),
            ("[7,\"a]", &["7", "\"a]"], false),
            ("[7,\"a\\", &["7", "\"a\\"], false),
            ("[7][8]", &["7"], false),
            ("[7]\x0c", &["7"], false),
        ] {
            let mut found = Vec::new();
            let end = elements(text.as_bytes(), |element| found.push(element.text));
            let expected: Vec<&[u8]> = expected.iter().map(|element| element.as_bytes()).collect();
            assert_eq!((found, end), (expected, whole), "{text:?}");
        }
    }

    #[test]
    fn the_depth_of_each_element_is_its_own() {
        let mut found = Vec::new();
        elements(b"[7,[[],{}],\"[[\",{\"a\":[[]]},{}]", |element| found.push(element.depth));
        assert_eq!(found, [1, 3, 1, 4, 2]);
    }
}
