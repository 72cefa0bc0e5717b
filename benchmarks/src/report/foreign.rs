//! Text and paths that the page did not write itself.

use serde::Serialize;

/// Foreign text is cut after so many characters.
const MAX_TEXT: usize = 400;

/// A piece of text, perhaps a link.
#[derive(Serialize)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) href: Option<String>,
}

/// `text`, at most [`MAX_TEXT`] characters of it.
pub(super) fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
        None => text.to_owned(),
    }
}

/// `path` as a relative link, percent-encoded; `None` if it would lead out of the result folder.
pub(super) fn link(path: &str) -> Option<String> {
    if path.is_empty() || path.split('/').any(|part| part.is_empty() || part == "." || part == "..")
    {
        return None;
    }
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            _ => super::svg::write_to(&mut out, format_args!("%{byte:02X}")),
        }
    }
    Some(out)
}

/// Splits at spaces so that addresses become links.
pub(super) fn pieces(source: &str) -> Vec<Piece> {
    let source = cut(source);
    let mut pieces: Vec<Piece> = Vec::new();
    for word in source.split_inclusive(char::is_whitespace) {
        let address = word.trim_end().trim_end_matches([',', ';', '.', ')']);
        if address.starts_with("https://") {
            pieces.push(Piece { text: address.to_owned(), href: Some(address.to_owned()) });
            pieces.push(Piece { text: word[address.len()..].to_owned(), href: None });
        } else {
            pieces.push(Piece { text: word.to_owned(), href: None });
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside_the_result_folder() {
        assert_eq!(
            link("videos/task0003_ep0012_failure.mp4").unwrap(),
            "videos/task0003_ep0012_failure.mp4"
        );
        assert_eq!(link("javascript:alert(1)").unwrap(), "javascript%3Aalert%281%29");
        assert_eq!(link("a b\"/c.mp4").unwrap(), "a%20b%22/c.mp4");
        for outside in ["", "/etc/passwd", "../x.mp4", "videos/../../x.mp4", "//host/x"] {
            assert_eq!(link(outside), None);
        }
    }

    #[test]
    fn only_https_addresses_become_links() {
        let links = |text: &str| -> Vec<String> {
            pieces(text).into_iter().filter_map(|p| p.href).collect()
        };
        assert_eq!(links("see https://example.org/a, line 3"), vec!["https://example.org/a"]);
        assert!(links("javascript:alert(1) http://x file:///y").is_empty());
        let text: String = pieces("a https://b.c; d").into_iter().map(|p| p.text).collect();
        assert_eq!(text, "a https://b.c; d");
    }

    #[test]
    fn long_foreign_text_is_cut_between_characters() {
        let text = cut(&"\u{e9}".repeat(1000));
        assert_eq!(text.chars().count(), MAX_TEXT + 1);
    }
}
