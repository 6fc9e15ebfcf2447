//! Special values of every built-in type.

/// Texts of a type's values: the ends of its range, and what is easily written wrong. `None` for a
/// type that nobody has thought of yet.
pub fn of(type_name: &str) -> Option<Vec<String>> {
    let texts: &[&str] = match type_name {
        "numeric" => return Some(numerics()),
        "text" | "varchar" => return Some(texts()),
        "json" => {
            return Some(documents(&["1e400", "\"\\ud800 \\u0000\"", "{\"a\": 1,\n \"a\":2 }"]));
        }
        "jsonb" => return Some(documents(&["1e400", "{\"b\": null, \"a\": \"\\u0001\"}"])),
        "bool" => &["t", "f"],
        "bytea" => &["\\x", "\\x00ff10", "\\x5c27220a"],
        "char" => &["a", "", "'", "\\", "\\377"],
        "name" => &["a", "q\"uo\\te", "", "ß{}"],
        "int2" => &["0", "-32768", "32767"],
        "int4" => &["0", "-2147483648", "2147483647"],
        "int8" => &["0", "-9223372036854775808", "9223372036854775807", "9007199254740993"],
        "int2vector" | "oidvector" => &["", "1", "1 2 3"],
        "oid" | "xid" | "cid" => &["0", "4294967295"],
        "xid8" => &["0", "18446744073709551615"],
        "tid" => &["(0,1)", "(4294967295,65535)"],
        "float4" => &[
            "0",
            "-0",
            "1.5",
            "0.1",
            "16777217",
            "1e-45",
            "3.4028235e+38",
            "NaN",
            "Infinity",
            "-Infinity",
        ],
        "float8" => &[
            "0",
            "-0",
            "0.1",
            "0.30000000000000004",
            "5e-324",
            "1.7976931348623157e+308",
            "1e15",
            "1e16",
            "9007199254740993",
            "NaN",
            "Infinity",
            "-Infinity",
        ],
        "money" => &["0", "1234.5", "-92233720368547758.08", "92233720368547758.07"],
        "xml" => &["<a b=\"c\">x &amp; y</a>", "text", "<?xml version=\"1.0\"?><a/>"],
        "uuid" => &["6f9619ff-8b86-d011-b42d-00c04fc964ff"],
        "pg_lsn" => &["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"],
        "txid_snapshot" | "pg_snapshot" => &["10:20:10,14,15", "1:1:"],
        "jsonpath" => &["$", "strict $.\"a b\"[*] ? (@.c > 1 && @.d like_regex \"^x\")"],
        "refcursor" => &["cursor", ""],
        "aclitem" => &["postgres=r*w/postgres", "=X/postgres"],
        "bpchar" => &["ab  ", "", "'"],
        "bit" => &["0", "1"],
        "varbit" => &["", "1", "0101010101010101010101"],
        _ => return dates(type_name).or_else(|| others(type_name)).map(owned),
    };
    Some(owned(texts))
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn dates(type_name: &str) -> Option<&'static [&'static str]> {
    Some(match type_name {
        "date" => &[
            "2026-11-23",
            "2024-02-29",
            "0001-01-01",
            "9999-12-31",
            "10000-01-01",
            "5874897-12-31",
            "0044-03-15 BC",
            "4714-11-24 BC",
            "infinity",
            "-infinity",
        ],
        "timestamp" => &[
            "2026-11-23 17:46:00",
            "2026-11-23 17:46:00.5",
            "0001-01-01 00:00:00",
            "9999-12-31 23:59:59.999999",
            "294276-12-31 23:59:59.999999",
            "0044-03-15 10:00:00 BC",
            "4714-11-24 00:00:00 BC",
            "infinity",
            "-infinity",
        ],
        "timestamptz" => &[
            "2026-11-23 12:46:00.123456-05",
            "0001-01-01 00:00:00+00",
            "9999-12-31 23:59:59.999999+00",
            "294276-12-31 23:59:59.999999+00",
            "0044-03-15 10:00:00+00 BC",
            "4714-11-24 00:00:00+00 BC",
            "infinity",
            "-infinity",
        ],
        "time_stamp" => &["2026-11-23 17:46:00.12+00", "infinity"],
        "time" => &["00:00:00", "12:30:00.000001", "24:00:00"],
        "timetz" => &["12:30:00+15:59", "00:00:00.1-15:59:59"],
        "interval" => &[
            "0",
            "1 year -2 mons 3 days -04:05:06.789",
            "-00:00:00.000001",
            "178000000 years",
            "-178000000 years",
            "00:00:00.1",
        ],
        "tsrange" => {
            &["empty", "[2026-01-01 00:00:00,2027-01-01 00:00:00.5)", "[-infinity,infinity]"]
        }
        "tstzrange" => &["empty", "[2026-01-01 00:00:00+01,)", "(,\"0044-03-15 10:00:00+00 BC\"]"],
        "daterange" => &["empty", "[2026-01-01,2026-12-31]", "(,)", "[0044-03-15 BC,infinity)"],
        "tsmultirange" => &["{}", "{[2026-01-01 00:00:00,2027-01-01 00:00:00)}"],
        "tstzmultirange" => &["{}", "{(,2026-01-01 00:00:00+00),[2027-01-01 00:00:00+00,)}"],
        "datemultirange" => &["{}", "{[2026-01-01,2026-02-01),[2026-03-01,)}"],
        _ => return None,
    })
}

fn others(type_name: &str) -> Option<&'static [&'static str]> {
    Some(match type_name {
        "point" => &["(1.5,-2)", "(NaN,Infinity)", "(1e-300,1e+300)"],
        "lseg" => &["[(1,2),(3,4)]"],
        "path" => &["[(1,2),(3,4)]", "((1,2),(3,4))"],
        "box" => &["(3,4),(1,2)", "(0.1,0.2),(-0.1,-1e-300)"],
        "polygon" => &["((0,0),(1,1),(2,0))"],
        "line" => &["{1,-2,3.5}"],
        "circle" => &["<(1,2),3>"],
        "cidr" => &["10.0.0.0/8", "2001:db8::/32"],
        "inet" => &["10.0.0.1", "10.0.0.1/8", "::1", "::ffff:1.2.3.4/96"],
        "macaddr" => &["08:00:2b:01:02:03"],
        "macaddr8" => &["08:00:2b:01:02:03:04:05"],
        "tsvector" => &["", "'a':1A,2 'b c' 'it''s':3B 'q\\\\'"],
        "tsquery" => &["", "'a' & !( 'b c':*AB | 'd' )", "'x' <2> 'y'"],
        "int4range" | "int8range" => &["empty", "[-5,5)", "(,)", "[1,)", "(,1]"],
        "numrange" => &["empty", "(1.50,2.5]", "[1e-100,)"],
        "int4multirange" | "int8multirange" => &["{}", "{[1,3),[5,7)}", "{(,)}"],
        "nummultirange" => &["{}", "{(1.50,2.5],[7,)}"],
        "regproc" => &["version", "-", "424242"],
        "regprocedure" => &["version()", "abs(double precision)", "-"],
        "regoper" => &["||/", "0"],
        "regoperator" => &["+(integer,integer)", "@(NONE,bigint)"],
        "regclass" => &["pg_class", "public.webhooks", "information_schema.tables", "-"],
        "regtype" => &["integer", "timestamp with time zone", "\"char\"", "character varying[]"],
        "regcollation" => &["\"C\"", "-"],
        "regconfig" => &["english"],
        "regdictionary" => &["english_stem"],
        "regrole" => &["postgres", "-"],
        "regnamespace" => &["pg_catalog", "public"],
        "cardinal_number" => &["0", "2147483647"],
        "character_data" | "sql_identifier" => &["", "it's \"x\""],
        "yes_or_no" => &["YES", "NO"],
        _ => return None,
    })
}

fn numerics() -> Vec<String> {
    let digits = format!("-{}.{}", "987654321".repeat(70), "123456789".repeat(42));
    let texts = ["0", "0.000", "1.500", "-1e-30", "1e+1000", "NaN", "Infinity", "-Infinity"];
    owned(&texts).into_iter().chain([digits]).collect()
}

fn texts() -> Vec<String> {
    let texts = [
        "",
        " ",
        "NULL",
        "null",
        "a,b",
        "\"",
        "\\",
        "\\\"",
        "{a,\"b\"}",
        "(a)",
        "\u{1}\t\n\r\u{7f}",
        "ü 😀 \u{2028}\u{feff}\u{10ffff}",
    ];
    // Long enough to be TOASTed, in a way that does not compress well enough to avoid it.
    let long =
        (0..3_000).map(|n: u64| char::from(33 + u8::try_from(n * n % 93).unwrap())).collect();
    owned(&texts).into_iter().chain([long]).collect()
}

fn documents(special: &[&str]) -> Vec<String> {
    let texts = [
        "{\"a\": [1, 1.00, \"ü\"]}",
        "\"x\"",
        "true",
        "-0.10",
        "[]",
        "{}",
        "123456789012345678901234567890.123456789",
    ];
    let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
    owned(&texts).into_iter().chain(owned(special)).chain([deep]).collect()
}
