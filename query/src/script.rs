//! A script as statements: cut at the semicolons that end statements, and at no others.
//!
//! The tokens are the parser's own, so that a semicolon in a text, a quoted name or a comment is none.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Whitespace};

use crate::QueryError;
use crate::guard::LakeDialect;

/// Bytes of a script: a longer one is refused.
pub const BYTES_MAX: usize = 16 << 20;

/// The statements of a script, in order, without their semicolons; what is blank or a comment alone is none.
pub fn statements(script: &str) -> Result<Vec<String>, QueryError> {
    let tokens = tokens(script).map_err(QueryError::Syntax)?;
    let mut statements = Vec::new();
    let mut places = Places::new(script);
    let (mut start, mut is_blank) = (0, true);
    for token in &tokens {
        match &token.token {
            Token::SemiColon => {
                let end = places.byte(token.span.start.line, token.span.start.column);
                if !is_blank {
                    statements.push(part(script, start, end));
                }
                (start, is_blank) = (end + 1, true);
            }
            Token::Whitespace(_) => {}
            _ => is_blank = false,
        }
    }
    if !is_blank {
        statements.push(part(script, start, script.len()));
    }
    Ok(statements)
}

fn part(script: &str, start: usize, end: usize) -> String {
    script.get(start..end).unwrap_or_default().trim().to_owned()
}

/// Whether what was typed so far ends with a statement, or can only be said to be wrong: nothing more is waited for.
pub fn is_complete(typed: &str) -> bool {
    match tokens(typed) {
        Ok(tokens) => {
            // behind a line comment the semicolon is part of it
            let is_said = |token: &&TokenWithSpan| !matches!(token.token, Token::Whitespace(_));
            match tokens.iter().rev().find(is_said) {
                None => !tokens.iter().any(|t| {
                    matches!(
                        t.token,
                        Token::Whitespace(
                            Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_)
                        )
                    )
                }),
                Some(last) => last.token == Token::SemiColon,
            }
        }
        Err(problem) => !is_open(&problem),
    }
}

/// Whether what is wrong is only that a text, a name or a comment is not closed yet.
fn is_open(problem: &str) -> bool {
    ["Unterminated", "EOF"]
        .iter()
        .any(|sign| problem.contains(sign))
}

fn tokens(text: &str) -> Result<Vec<TokenWithSpan>, String> {
    if text.len() > BYTES_MAX {
        return Err(format!(
            "the script has {} bytes, more than the {BYTES_MAX} that are read",
            text.len()
        ));
    }
    Tokenizer::new(&LakeDialect, text)
        .tokenize_with_location()
        .map_err(|error| error.to_string())
}

/// From lines and columns, which tokens have, to bytes. Asked in ascending order.
struct Places<'a> {
    text: &'a str,
    byte: usize,
    line: u64,
    column: u64,
}

impl<'a> Places<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            byte: 0,
            line: 1,
            column: 1,
        }
    }

    fn byte(&mut self, line: u64, column: u64) -> usize {
        let rest = self.text.get(self.byte..).unwrap_or_default();
        for c in rest.chars() {
            if (self.line, self.column) >= (line, column) {
                break;
            }
            self.byte += c.len_utf8();
            if c == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.byte
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_script_is_cut_where_statements_end() {
        let cut = |script: &str| statements(script).unwrap();
        assert_eq!(cut("SELECT 1"), ["SELECT 1"]);
        assert_eq!(
            cut(" SELECT 1 ;\n;; SELECT 2;\n-- the end\n"),
            ["SELECT 1", "SELECT 2"]
        );
        assert_eq!(
            cut(
                "SELECT ';' AS \"a;b\" -- no; end\n, 'it''s; é' /* nor; here */;\r\nSELECT 'é;日'; SELECT 3"
            ),
            [
                "SELECT ';' AS \"a;b\" -- no; end\n, 'it''s; é' /* nor; here */",
                "SELECT 'é;日'",
                "SELECT 3"
            ]
        );
        assert_eq!(cut(""), Vec::<String>::new());
        assert_eq!(cut("-- nothing\n;"), Vec::<String>::new());
        assert_eq!(
            cut("SELECT * FROM \"orders$live\";"),
            ["SELECT * FROM \"orders$live\""]
        );
    }

    #[test]
    fn what_is_not_closed_is_an_error_of_the_script() {
        for open in ["SELECT 'a; SELECT 2", "SELECT \"a", "SELECT 1 /* a"] {
            let error = statements(open).unwrap_err();
            assert!(matches!(error, QueryError::Syntax(_)), "{open}: {error}");
        }
        let long = format!("SELECT '{}'", "x".repeat(BYTES_MAX));
        assert!(statements(&long).is_err());
    }

    #[test]
    fn a_line_is_waited_for_until_a_semicolon_ends_the_statement() {
        for whole in [
            "SELECT 1;",
            "SELECT ';';",
            "",
            "  ",
            "SELECT 1; -- so\n",
            "SELECT 1; SELECT 2;\n",
        ] {
            assert!(is_complete(whole), "{whole:?}");
        }
        for part in [
            "SELECT 1",
            "SELECT 1; SELECT",
            "SELECT ';",
            "SELECT \"a;",
            "SELECT 1 /* ;",
            "SELECT 1 -- ;",
            "-- first",
        ] {
            assert!(!is_complete(part), "{part:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_cut_or_refused_and_nothing_is_lost(text in "[ -~\n'\";é日$/*-]{0,80}") {
            let _ = is_complete(&text);
            if let Ok(parts) = statements(&text) {
                // the parts are in the text, one behind the other
                let mut rest = text.as_str();
                for part in parts {
                    let at = rest.find(&part);
                    prop_assert!(at.is_some(), "{part:?} in {rest:?}");
                    rest = &rest[at.unwrap() + part.len()..];
                }
            }
        }

        #[test]
        fn statements_come_back_as_they_were(texts in prop::collection::vec("[a-z ;'é\n]{0,12}", 1..5)) {
            let written: Vec<String> = texts
                .iter()
                .map(|text| format!("SELECT '{}' AS \"{}\"", text.replace('\'', "''"), text))
                .collect();
            let script = written.join(";\n");
            prop_assert_eq!(statements(&script).unwrap(), written);
        }
    }
}
