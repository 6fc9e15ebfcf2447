//! Values that no column was made for.

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::support::{SECRET, World};

/// What makes it up, by seed.
pub(super) struct Rubbish(pub(super) SmallRng);

impl Rubbish {
    pub(super) fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of.choose(&mut self.0).unwrap()
    }

    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.0.random_ratio(percent, 100)
    }

    pub(super) fn text(&mut self) -> String {
        const PIECES: [&str; 24] = [
            "",
            " ",
            "acme",
            "é😀",
            "\u{1}",
            "\u{1b}[31m",
            "\n",
            "\r\n",
            "\u{85}",
            "\u{202e}",
            "'",
            "\"",
            "\\",
            "{",
            "}",
            "NULL",
            "1e400",
            "NaN",
            "-1",
            "\u{ffff}",
            "\u{10ffff}",
            "\t",
            "%s",
            "\u{7f}",
        ];
        let mut text = String::new();
        for _ in 0..self.0.random_range(1..6) {
            text.push_str(self.pick(&PIECES));
        }
        let times = *[1, 1, 1, 1, 1, 40, 150, 3_000].choose(&mut self.0).unwrap();
        text.repeat(times)
    }

    pub(super) fn json(&mut self) -> String {
        let text = serde_json::Value::from(self.text()).to_string();
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        let kinds = [
            r#"["*"]"#,
            r#""*""#,
            "null",
            "{}",
            "[]",
            "1e400",
            "-0.0",
            "true",
            r#"[["*"],["a"]]"#,
            r#"{"x-a":"b"}"#,
            r#"{"x-a":{"b":[1]}}"#,
            r#"{"x-a":1e400}"#,
            r#"{"a":1,"a":2}"#,
            r#""\u0000""#,
            r#""\ud800""#,
            r#"{"\u0000":"\ud83d"}"#,
            r#"{"x\n":"\r"}"#,
            &deep,
            &text,
        ];
        self.pick(&kinds).to_owned()
    }

    pub(super) fn array(&mut self) -> String {
        let text = self.text().replace('\\', r"\\").replace('"', "\\\"");
        let many = format!("{{{}}}", vec!["a.b"; 1_500].join(","));
        let odd = format!("{{*,\"{text}\"}}");
        let kinds = [
            "{*}",
            "{}",
            "{{*,a},{b,c}}",
            "{NULL}",
            "[5:6]={*,b}",
            "{\"\"}",
            "{{{*}}}",
            &many,
            &odd,
        ];
        self.pick(&kinds).to_owned()
    }

    pub(super) fn number(&mut self) -> String {
        let digits = "9".repeat(700);
        let kinds = [
            "1",
            "0",
            "-1",
            "0.5",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e300",
            "1e-300",
            "1e400",
            "1e4000",
            "3.7",
            "4294967296",
            &digits,
        ];
        self.pick(&kinds).to_owned()
    }

    /// A value for a column of a type, which the server may still refuse.
    pub(super) fn value(&mut self, kind: &str) -> Option<String> {
        if self.chance(10) {
            return None;
        }
        Some(match kind {
            "json" | "jsonb" => self.json(),
            "text[]" => self.array(),
            "numeric" | "float8" => self.number(),
            "boolean" => self.pick(&["true", "true", "false"]).to_owned(),
            _ => match self.0.random_range(0..4) {
                0 => self.json(),
                1 => self.array(),
                2 => self.number(),
                _ => self.text(),
            },
        })
    }

    pub(super) fn url(&mut self, world: &World, path: &str) -> Option<String> {
        if self.chance(40) {
            return Some(world.mock.url(path));
        }
        let port = world.mock.address().port();
        let long = format!("http://127.0.0.1:{port}/{}", "x".repeat(20_000));
        let secure = format!("https://127.0.0.1:{port}/");
        let user = format!("http://user:password@127.0.0.1:{port}/");
        let rubbish = self.text();
        let kinds = [
            "",
            " ",
            "ftp://127.0.0.1/",
            "http://",
            "http://[::1",
            "http://127.0.0.1:99999/",
            "http://127.0.0.1:1/",
            "http://10.255.255.1/",
            "javascript:alert(1)",
            "http://\u{7}/",
            "http://127.0.0.1:1/\r\nx: y",
            "//",
            &long,
            &secure,
            &user,
            &rubbish,
        ];
        if self.chance(5) { None } else { Some(self.pick(&kinds).to_owned()) }
    }

    pub(super) fn secret(&mut self, kind: &str) -> Option<String> {
        let one = match self.0.random_range(0..12) {
            0..6 => SECRET.to_owned(),
            6 => "whsec_".to_owned(),
            7 => "whsec_!!!".to_owned(),
            8 => "whpk_AAAA".to_owned(),
            9 => "whsk_AAAA".to_owned(),
            10 => format!(" {SECRET}\n"),
            _ => return self.value(kind),
        };
        let json = serde_json::Value::from(one.as_str()).to_string();
        let count = *[1, 1, 2, 11, 1_000].choose(&mut self.0).unwrap();
        Some(match kind {
            "text[]" => format!("{{{}}}", vec![json; count].join(",")),
            "jsonb" => format!("[{}]", vec![json; count].join(",")),
            _ => one,
        })
    }
}
