use proptest::prelude::*;

use super::*;

#[test]
fn amounts_are_written_in_canonical_form() {
    let cases = [
        ("0", "0"),
        ("0Gi", "0"),
        ("0.0", "0"),
        ("-0", "0"),
        ("1", "1"),
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("0.5", "500m"),
        ("1.5", "1500m"),
        ("100m", "100m"),
        ("1024Mi", "1Gi"),
        ("1024Ki", "1Mi"),
        ("1536Mi", "1536Mi"),
        ("1.5Gi", "1536Mi"),
        ("0.5Gi", "512Mi"),
        ("0.5Ki", "512"),
        ("1Ki", "1Ki"),
        ("1000Ki", "1000Ki"),
        ("512", "512"),
        ("1000", "1k"),
        ("1000000", "1M"),
        ("12e6", "12e6"),
        ("12E6", "12e6"),
        ("1e3", "1e3"),
        ("10e2", "1e3"),
        ("1e0", "1e0"),
        ("100e1", "1e3"),
        ("1E", "1E"),
        ("1000P", "1E"),
        ("1000E", "1000E"),
        ("0.1m", "100u"),
        ("0.0000000001", "1n"),
        ("1.0000000001", "1000000001n"),
        ("-1.5", "-1500m"),
        ("-1024Mi", "-1Gi"),
        ("16Ei", "9223372036854775807"),
        ("10e99", "10e99"),
        ("100000000000000000000000000000000000000000000E", "100e60"),
        ("1.1Ki", "1126400m"),
        ("5.", "5"),
        (".5", "500m"),
    ];
    for (text, canonical_text) in cases {
        // Upstream writes some texts back as they came; their amount is right all the same.
        let q = Quantity::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let mut plain = q.clone();
        plain.text = None;
        let shown = q.to_string();
        assert!(shown == canonical_text || shown == text, "{text}: {shown}");
        if !["1e0", "12E6", "10e2", "5."].contains(&text) {
            assert_eq!(plain.to_string(), canonical_text, "{text}");
        }
    }
}

#[test]
fn what_is_no_amount_is_refused_in_upstreams_words() {
    let cases = [
        ("", QuantityError::Format),
        ("abc", QuantityError::Format),
        ("1.1.M", QuantityError::Format),
        ("1 ", QuantityError::Format),
        ("1Kb", QuantityError::Format),
        ("1mi", QuantityError::Suffix),
        ("1K", QuantityError::Suffix),
        ("1e", QuantityError::Suffix),
        ("1i", QuantityError::Suffix),
        ("1e99999999999", QuantityError::Suffix),
    ];
    for (text, error) in cases {
        assert_eq!(Quantity::parse(text).map(|q| q.to_string()), Err(error), "{text}");
    }
    assert_eq!(canonical(" 1 ").as_deref(), Ok("1"));
}

#[test]
fn amounts_are_counted_and_compared() {
    let q = |s: &str| Quantity::parse(s).expect(s);
    assert_eq!(q("1.5").value(), 2);
    assert_eq!(q("-1.5").value(), -2);
    assert_eq!(q("1.5").milli_value(), 1500);
    assert_eq!(q("1n").milli_value(), 1);
    assert_eq!(q("1Gi").value(), 1 << 30);
    assert_eq!(q("1e30").value(), i64::MAX);
    assert_eq!(q("1e2147483647").value(), i64::MAX);
    assert_eq!(q("1e-2147483647").value(), 1);
    assert_eq!(q("1"), q("1000m"));
    assert!(q("1Ki") > q("1k"));
    assert!(q("-1") < q("0"));
    assert!(q("1e2147483647") > q("9E"));
    assert!(q("-1e2147483647") < q("-9E"));
    assert_eq!(q("100m").add(&q("1")).to_string(), "1100m");
    assert_eq!(q("0").add(&q("1Gi")).to_string(), "1Gi");
    assert_eq!(q("1Gi").sub(&q("1Mi")).to_string(), "1023Mi");
    assert_eq!(q("1").sub(&q("1")).to_string(), "0");
}

proptest! {
    #[test]
    fn the_canonical_form_is_the_same_amount_and_stays(n in -1_000_000_000i64..1_000_000_000, f in 0u32..1_000_000, s in 0usize..17) {
        let suffixes: Vec<&str> = DECIMAL.iter().map(|(s, _)| *s).chain(BINARY).collect();
        let text = format!("{n}.{f:06}{}", suffixes[s]);
        let q = Quantity::parse(&text).expect("parses");
        let mut plain = q.clone();
        plain.text = None;
        let again = Quantity::parse(&plain.to_string()).expect("canonical form parses");
        prop_assert_eq!(&again, &q);
        prop_assert_eq!(again.to_string(), plain.to_string());
    }

    #[test]
    fn any_text_is_read_or_refused(s in "\\PC{0,24}") {
        let _ = Quantity::parse(&s).map(|q| (q.to_string(), q.value()));
    }

    #[test]
    fn numbers_like_text_is_read_or_refused(s in "[-+]?[0-9.]{0,60}[eEinumkKMGTP]{0,2}[-+]?[0-9]{0,12}") {
        if let Ok(q) = Quantity::parse(&s) {
            let other = Quantity::parse("1.5Gi").expect("parses");
            let _ = (q.to_string(), q.milli_value(), q.cmp(&other), q.add(&other), q.sub(&other), q.approximate());
        }
    }

    #[test]
    fn order_and_arithmetic_are_those_of_thousandths(a in -1_000_000_000i64..1_000_000_000, b in -1_000_000_000i64..1_000_000_000) {
        let (x, y) = (Quantity::from_milli(a, Format::DecimalSi), Quantity::from_milli(b, Format::BinarySi));
        prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        prop_assert_eq!(x.add(&y).milli_value(), a + b);
        prop_assert_eq!(x.sub(&y).milli_value(), a - b);
    }
}
