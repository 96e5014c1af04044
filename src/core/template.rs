//! The template language of `spec.secrets[].data`: text, names of outputs, and a fixed list of filters.
//!
//! ```text
//! //registry.npmjs.org/:_authToken={{ npm_token }}
//! {"auth": {{ user | default("x-access-token") | tojson }}}
//! {{ "{{" }} writes two braces
//! ```
//!
//! Whoever may write an `EphemeralCredential` may write a template, so reading one takes time and memory
//! in proportion to its length, and rendering one stops at a limit given by the caller. There are no
//! loops, conditions, arithmetic, or literals but filter arguments: nothing that could make a short text
//! cost much.

use std::collections::BTreeSet;
use std::fmt;

use data_encoding::BASE64;
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::render::Outputs;

/// Filters one expression may chain: each may lengthen its input.
const MOST_FILTERS: usize = 8;
/// What an expression may write literally, since it cannot be written as text.
const BRACES: [&str; 4] = ["{{", "}}", "{%", "{#"];

/// A template that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Template<'a> {
    parts: Vec<Part<'a>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part<'a> {
    Text(&'a str),
    Output { name: &'a str, filters: Vec<Filter> },
}

/// What can be done to an output.
#[derive(Clone, Debug, PartialEq)]
enum Filter {
    /// Standard base64, with padding.
    B64Encode,
    /// A JSON string, with its quotes.
    ToJson,
    /// Percent-encoding of all but letters, digits, `-`, `.`, `_` and `~` (RFC 3986).
    UrlEncode,
    /// Without white space at both ends.
    Trim,
    /// In upper case.
    Upper,
    /// In lower case.
    Lower,
    /// This text where the output did not come.
    Default(String),
}

/// Why a text is no template: what is wrong, and where. Never quotes more than a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

/// Why a template could not be rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RenderError {
    /// These outputs did not come, and have no default.
    Missing(Vec<String>),
    /// The result would be longer than allowed.
    TooLong,
}

impl<'a> Template<'a> {
    /// Reads `source`.
    ///
    /// # Errors
    /// The first thing that does not belong to the language.
    pub fn parse(source: &'a str) -> Result<Self, SyntaxError> {
        let mut parts = Vec::new();
        let mut rest = source;
        while let Some(at) = rest.find('{') {
            let offset = source.len() - rest.len() + at;
            match rest.as_bytes().get(at + 1) {
                Some(b'{') => {
                    push_text(&mut parts, &rest[..at]);
                    let mut cursor = Cursor { source, at: offset + 2 };
                    parts.push(cursor.expression()?);
                    rest = &source[cursor.at..];
                }
                Some(b'%' | b'#') => {
                    let message =
                        "statements and comments are not part of the language; {{ \"{%\" }} writes the braces";
                    return Err(error_at(source, offset, message));
                }
                _ => {
                    push_text(&mut parts, &rest[..=at]);
                    rest = &rest[at + 1..];
                }
            }
        }
        push_text(&mut parts, rest);
        Ok(Self { parts })
    }

    /// The outputs that it needs, and that are not among `outputs`.
    #[must_use]
    pub fn missing(&self, outputs: &Outputs) -> BTreeSet<&'a str> {
        let needed = self.parts.iter().filter_map(|part| match part {
            Part::Output { name, filters } if !filters.iter().any(|f| matches!(f, Filter::Default(_))) => Some(*name),
            _ => None,
        });
        needed.filter(|name| !outputs.contains_key(*name)).collect()
    }

    /// Writes it out with `outputs`, at most `most` bytes.
    ///
    /// # Errors
    /// Which outputs are missing, or that it would be longer.
    pub fn render(&self, outputs: &Outputs, most: usize) -> Result<Zeroizing<String>, RenderError> {
        let missing = self.missing(outputs);
        if !missing.is_empty() {
            return Err(RenderError::Missing(missing.into_iter().map(str::to_owned).collect()));
        }
        let mut rendered = Zeroizing::new(String::new());
        for part in &self.parts {
            match part {
                Part::Text(text) => append(&mut rendered, text, most)?,
                Part::Output { name, filters } => {
                    let room = most - rendered.len();
                    let value = filtered(outputs.get(*name).map(ExposeSecret::expose_secret), filters, room)?;
                    append(&mut rendered, &value, most)?;
                }
            }
        }
        Ok(rendered)
    }
}

/// Appends without leaving a copy behind that nobody wipes.
pub(super) fn append(to: &mut Zeroizing<String>, text: &str, most: usize) -> Result<(), RenderError> {
    if text.len() > most - to.len() {
        return Err(RenderError::TooLong);
    }
    if to.capacity() - to.len() < text.len() {
        let mut grown = Zeroizing::new(String::with_capacity(
            (to.len() + text.len()).saturating_mul(2).min(most),
        ));
        grown.push_str(to);
        *to = grown;
    }
    to.push_str(text);
    Ok(())
}

fn push_text<'a>(parts: &mut Vec<Part<'a>>, text: &'a str) {
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
}

fn filtered(value: Option<&str>, filters: &[Filter], most: usize) -> Result<Zeroizing<String>, RenderError> {
    let mut value = value.map(|text| Zeroizing::new(text.to_owned()));
    for filter in filters {
        let Some(text) = value.take() else {
            if let Filter::Default(text) = filter {
                value = Some(Zeroizing::new(text.clone()));
            }
            continue;
        };
        // The longest a filter makes of a byte is the six of a JSON escape.
        if text.len() > most.saturating_mul(6) {
            return Err(RenderError::TooLong);
        }
        let next = match filter {
            Filter::B64Encode => BASE64.encode(text.as_bytes()),
            Filter::ToJson => serde_json::Value::String(text.to_string()).to_string(),
            Filter::UrlEncode => url_encoded(&text),
            Filter::Trim => text.trim().to_owned(),
            Filter::Upper => text.to_uppercase(),
            Filter::Lower => text.to_lowercase(),
            Filter::Default(_) => {
                value = Some(text);
                continue;
            }
        };
        value = Some(Zeroizing::new(next));
    }
    Ok(value.unwrap_or_default())
}

pub(super) fn url_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            for digit in [byte >> 4, byte & 15] {
                encoded.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
    encoded
}

/// Reads what stands between `{{` and `}}`.
struct Cursor<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.source.len() - self.rest().trim_start().len();
    }

    fn error<T>(&self, message: impl AsRef<str>) -> Result<T, SyntaxError> {
        Err(error_at(self.source, self.at, message.as_ref()))
    }

    fn take(&mut self, what: &str) -> bool {
        let there = self.rest().starts_with(what);
        if there {
            self.at += what.len();
        }
        there
    }

    fn name(&mut self) -> &'a str {
        let rest = self.rest();
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = rest.find(|c| !word(c)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn expression(&mut self) -> Result<Part<'a>, SyntaxError> {
        self.skip_space();
        if self.rest().starts_with('"') {
            let from = self.at;
            let text = self.string()?;
            let Some(braces) = BRACES.iter().find(|b| **b == text) else {
                self.at = from;
                return self
                    .error("only {{, }}, {% and {# are written as literals; all other text stands outside of {{ }}");
            };
            self.close()?;
            return Ok(Part::Text(braces));
        }
        let from = self.at;
        let name = self.name();
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            self.at = from;
            return self.error("expected the name of an output, such as {{ npm_token }}");
        }
        let mut filters = Vec::new();
        self.skip_space();
        while self.take("|") {
            if filters.len() == MOST_FILTERS {
                return self.error(format!("at most {MOST_FILTERS} filters in a row"));
            }
            filters.push(self.filter()?);
            self.skip_space();
        }
        self.close()?;
        Ok(Part::Output { name, filters })
    }

    fn close(&mut self) -> Result<(), SyntaxError> {
        self.skip_space();
        if self.take("}}") {
            return Ok(());
        }
        self.error("expected | and a filter, or }}: there is nothing else in the language")
    }

    fn filter(&mut self) -> Result<Filter, SyntaxError> {
        self.skip_space();
        let from = self.at;
        Ok(match self.name() {
            "b64encode" => Filter::B64Encode,
            "tojson" => Filter::ToJson,
            "urlencode" => Filter::UrlEncode,
            "trim" => Filter::Trim,
            "upper" => Filter::Upper,
            "lower" => Filter::Lower,
            "default" => {
                self.skip_space();
                if !self.take("(") {
                    return self.error("expected default(\"...\")");
                }
                self.skip_space();
                let text = self.string()?;
                self.skip_space();
                if !self.take(")") {
                    return self.error("expected ) after the argument of default");
                }
                Filter::Default(text)
            }
            _ => {
                self.at = from;
                return self.error(
                    "no such filter: there are b64encode, tojson, urlencode, trim, upper, lower and default(\"...\")",
                );
            }
        })
    }

    /// A string in double quotes, in which `\"` and `\\` stand for themselves.
    fn string(&mut self) -> Result<String, SyntaxError> {
        if !self.take("\"") {
            return self.error("expected a text in double quotes");
        }
        let mut text = String::new();
        let mut characters = self.rest().char_indices();
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    self.at += at + 1;
                    return Ok(text);
                }
                '\\' => {
                    let Some((_, c @ ('"' | '\\'))) = characters.next() else {
                        self.at += at;
                        return self.error("after \\ only \" and \\ may stand");
                    };
                    text.push(c);
                }
                c => text.push(c),
            }
        }
        self.error("a text in double quotes does not end")
    }
}

fn error_at(source: &str, offset: usize, message: &str) -> SyntaxError {
    let before = &source[..offset];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    SyntaxError {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::cases;
    use proptest::prelude::*;
    use secrecy::SecretString;

    fn outputs() -> Outputs {
        [("npm_token", "npm_1"), ("odd", " a\"b/ü\n")]
            .map(|(k, v)| (k.to_owned(), SecretString::from(v)))
            .into()
    }

    fn render(source: &str) -> String {
        let rendered = Template::parse(source).unwrap().render(&outputs(), 4096);
        rendered.unwrap().to_string()
    }

    #[test]
    fn outputs_are_written_into_the_text_around_them() {
        assert_eq!(render("//r/:_authToken={{ npm_token }}\n"), "//r/:_authToken=npm_1\n");
        assert_eq!(render("{{npm_token}}{{ npm_token }}"), "npm_1npm_1");
        assert_eq!(render("a { b } }} c"), "a { b } }} c");
    }

    #[test]
    fn filters_are_applied_from_left_to_right() {
        assert_eq!(render("{{ odd | tojson }}"), r#"" a\"b/ü\n""#);
        assert_eq!(render("{{ odd | trim | urlencode }}"), "a%22b%2F%C3%BC");
        assert_eq!(render("{{ npm_token | upper | b64encode }}"), "TlBNXzE=");
        assert_eq!(render("{{ npm_token|upper|lower }}"), "npm_1");
    }

    #[test]
    fn a_default_stands_in_for_an_output_that_did_not_come_and_for_no_other() {
        assert_eq!(render(r#"{{ user | default("x \"y\"") | upper }}"#), r#"X "Y""#);
        assert_eq!(render(r#"{{ npm_token | default("x") }}"#), "npm_1");
        let missing = Template::parse("{{ b }}{{ a }}{{ b | upper }}").unwrap();
        let names = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(missing.render(&outputs(), 99), Err(RenderError::Missing(names)));
    }

    #[test]
    fn braces_are_written_as_literals_and_nothing_else_is() {
        assert_eq!(render(r#"{{ "{{" }} x {{ "}}" }}{{ "{%" }}"#), "{{ x }}{%");
        assert!(Template::parse(r#"{{ "other" }}"#).is_err());
    }

    #[test]
    fn what_is_not_part_of_the_language_is_refused_with_its_place() {
        for source in [
            "{{ (1,)*20000000 }}",
            "{{ 'a' * 1000000 }}",
            "{{ debug() }}",
            "{{ npm_token.x }}",
            "{{ npm_token[0] }}",
            "{{ npm_token | safe }}",
            "{{ npm_token | default(1) }}",
            "{{ npm_token",
            "{{ npm_token }",
            "{{- npm_token -}}",
            "{{}}",
            "{% for i in range(9) %}",
            "{# a comment #}",
            "{{ npm_token | upper | upper | upper | upper | upper | upper | upper | upper | upper }}",
            "{{ x | default(\"",
        ] {
            assert!(Template::parse(source).is_err(), "{source}");
        }
        let error = Template::parse("a\nbü {{ x | nope }}").unwrap_err();
        assert_eq!((error.line, error.column), (2, 11));
    }

    #[test]
    fn nothing_longer_than_allowed_is_rendered_however_it_is_asked_for() {
        let long = "{{ npm_token | tojson | tojson | tojson | tojson | tojson | tojson | tojson | tojson }}".repeat(90);
        let template = Template::parse(&long).unwrap();
        assert_eq!(template.render(&outputs(), 1000), Err(RenderError::TooLong));
        assert_eq!(
            Template::parse("12345").unwrap().render(&outputs(), 4),
            Err(RenderError::TooLong)
        );
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn no_text_makes_it_panic_or_write_more_than_it_may(
            source in r#"(\{\{|\}\}|\{%|\||"|\\|npm_token|odd|tojson|default|urlencode|[ -~ü\n])*"#,
            most in 0_usize..200,
        ) {
            if let Ok(template) = Template::parse(&source)
                && let Ok(rendered) = template.render(&outputs(), most)
            {
                prop_assert!(rendered.len() <= most);
            }
        }
    }
}
