//! Random values, as texts that PostgreSQL reads, by seed.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::Column;
use super::read::{Shape, quoted};

/// A text, made with a source of randomness.
type Make = fn(&mut SmallRng) -> String;

/// Columns of many types, each with so many values.
pub(super) fn columns(seed: u64, rows: usize) -> Vec<Column> {
    let rng = &mut SmallRng::seed_from_u64(seed);
    let made: [(&str, Shape, Make); 18] = [
        ("int2", Shape::Number, |rng| rng.random::<i16>().to_string()),
        ("int4", Shape::Number, |rng| rng.random::<i32>().to_string()),
        ("int8", Shape::Number, |rng| rng.random::<i64>().to_string()),
        ("float4", Shape::Number, |rng| f32::from_bits(rng.random()).to_string()),
        ("float8", Shape::Number, |rng| f64::from_bits(rng.random()).to_string()),
        ("numeric", Shape::Text, numeric),
        ("text", Shape::Text, text),
        ("bytea", Shape::Bytes, bytes),
        ("uuid", Shape::Text, |rng| format!("{:032x}", rng.random::<u128>())),
        ("date", Shape::Text, |rng| day(rng).join("")),
        ("timestamp", Shape::Text, |rng| moment(rng, "")),
        ("timestamptz", Shape::Text, |rng| {
            let zone = offset(rng);
            moment(rng, &zone)
        }),
        ("timetz", Shape::Text, |rng| clock(rng) + &offset(rng)),
        ("interval", Shape::Text, interval),
        ("jsonb", Shape::Embedded, |rng| document(rng, 4)),
        ("inet", Shape::Text, address),
        ("tstzrange", Shape::Text, span),
        ("mix", Shape::Text, |rng| format!("({},{})", quoted(&text(rng)), rng.random::<f64>())),
    ];
    let mut columns = Vec::new();
    for (name, shape, make) in made {
        let texts: Vec<String> = (0..rows).map(|_| make(rng)).collect();
        if shape != Shape::Embedded {
            let texts = (0..rows).map(|_| array(rng, make)).collect();
            let shape = shape.clone().array(',');
            columns.push(Column { of_type: format!("{name}[]"), shape, texts });
        }
        columns.push(Column { of_type: name.to_owned(), shape, texts });
    }
    columns
}

/// An array of up to three dimensions, with nulls.
fn array(rng: &mut SmallRng, make: Make) -> String {
    let sizes: Vec<usize> = (0..rng.random_range(0..4)).map(|_| rng.random_range(1..4)).collect();
    nested(rng, make, &sizes)
}

fn nested(rng: &mut SmallRng, make: Make, sizes: &[usize]) -> String {
    let (size, inner) = sizes.split_first().map_or((0, sizes), |(size, inner)| (*size, inner));
    let elements: Vec<String> = (0..size)
        .map(|_| match inner {
            [] if rng.random_ratio(1, 5) => "NULL".to_owned(),
            [] => quoted(&make(rng)),
            _ => nested(rng, make, inner),
        })
        .collect();
    format!("{{{}}}", elements.join(","))
}

fn numeric(rng: &mut SmallRng) -> String {
    let mut digits = |most: usize| -> String {
        let count = rng.random_range(1..=most);
        (0..count).map(|_| char::from(b'0' + rng.random_range(0..10u8))).collect()
    };
    let (whole, fraction) = (digits(500), digits(500));
    let sign = if rng.random() { "-" } else { "" };
    format!("{sign}{whole}.{fraction}")
}

/// Text that is likely to hold what literals, arrays and JSON give a meaning to.
fn text(rng: &mut SmallRng) -> String {
    const SPECIAL: [char; 16] = [
        '"', '\\', '{', '}', '(', ')', ',', ';', ' ', '\n', '\t', '\u{1}', '\u{7f}', '\'', '/', 'é',
    ];
    let count = rng.random_range(0..20);
    let any = |rng: &mut SmallRng| match rng.random_range(0..3) {
        0 => SPECIAL[rng.random_range(0..SPECIAL.len())],
        1 => char::from(rng.random_range(b'0'..=b'z')),
        _ => rng.random_range('\u{1}'..=char::MAX),
    };
    (0..count).map(|_| any(rng)).collect()
}

fn bytes(rng: &mut SmallRng) -> String {
    let count = rng.random_range(0..400);
    (0..count).fold("\\x".to_owned(), |hex, _| hex + &format!("{:02x}", rng.random::<u8>()))
}

/// A day, and its era.
fn day(rng: &mut SmallRng) -> [String; 2] {
    let year = rng.random_range(1..12_000);
    let era = if rng.random_ratio(1, 4) && year < 4_713 { " BC" } else { "" };
    let day = format!("{year:04}-{:02}-{:02}", rng.random_range(1..13), rng.random_range(1..29));
    [day, era.to_owned()]
}

fn clock(rng: &mut SmallRng) -> String {
    let (hour, minute, second) =
        (rng.random_range(0..24), rng.random_range(0..60), rng.random_range(0..60));
    format!("{hour:02}:{minute:02}:{second:02}.{:06}", rng.random_range(0..1_000_000))
}

fn offset(rng: &mut SmallRng) -> String {
    format!(
        "{}{:02}:{:02}",
        if rng.random() { '+' } else { '-' },
        rng.random_range(0..14),
        rng.random_range(0..60)
    )
}

fn moment(rng: &mut SmallRng, zone: &str) -> String {
    let [day, era] = day(rng);
    format!("{day} {}{zone}{era}", clock(rng))
}

fn interval(rng: &mut SmallRng) -> String {
    let (months, days) = (rng.random::<i16>(), rng.random::<i16>());
    format!("{months} mons {days} days {} microseconds", rng.random::<i32>())
}

fn document(rng: &mut SmallRng, depth: u32) -> String {
    let leaf = depth == 0 || rng.random_ratio(1, 3);
    let inner = |rng: &mut SmallRng| document(rng, depth.saturating_sub(1));
    let string = |rng: &mut SmallRng| serde_json::Value::from(text(rng)).to_string();
    match (leaf, rng.random_range(0..3)) {
        (true, 0) => format!("{}.{}", rng.random::<i64>(), rng.random::<u32>()),
        (true, 1) => (if rng.random() { "true" } else { "[null]" }).to_owned(),
        (true, _) => string(rng),
        (false, 0) => format!("[{}, {}]", inner(rng), inner(rng)),
        (false, _) => {
            format!("{{{}: {}, {}: {}}}", string(rng), inner(rng), string(rng), inner(rng))
        }
    }
}

fn address(rng: &mut SmallRng) -> String {
    let bits = rng.random::<u128>();
    if rng.random() {
        format!("{}/{}", std::net::Ipv6Addr::from_bits(bits), rng.random_range(0..129))
    } else {
        format!("{}/{}", std::net::Ipv4Addr::from_bits(rng.random()), rng.random_range(0..33))
    }
}

fn span(rng: &mut SmallRng) -> String {
    let mut end = || format!("{}-01-01 {}+00", rng.random_range(1_000..10_000), clock(rng));
    let mut ends = [end(), end()];
    ends.sort_unstable();
    format!("[{},{})", ends[0], ends[1])
}
