use proptest::prelude::*;

use super::*;

fn set(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn a_query_selects_by_labels() {
    let labels = set(&[("app", "web"), ("n", "5"), ("empty", "")]);
    let cases = [
        ("", true),
        ("app", true),
        ("!app", false),
        ("!none", true),
        ("app=web", true),
        ("app==web,n=5", true),
        ("app!=web", false),
        ("none!=web", true),
        ("app in (web, db)", true),
        ("app notin (web)", false),
        ("none notin (web)", true),
        ("none in (web)", false),
        ("empty in ()", true),
        ("empty in (,a)", true),
        ("empty=", true),
        ("n>4", true),
        ("n<5", false),
        ("n>x1", false),
        ("in in (in)", false),
    ];
    for (text, selected) in cases {
        match LabelSelector::parse(text) {
            Ok(selector) => assert_eq!(selector.matches(&labels), selected, "{text}"),
            Err(e) => assert_eq!(text, "n>x1", "{e}"),
        }
    }
    assert!(!LabelSelector::Nothing.matches(&labels));
}

#[test]
fn a_query_that_is_none_is_refused_in_upstreams_words() {
    let cases = [
        ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("a=b c", "found 'c', expected: ',' or 'end of string'"),
        ("a=b,", "found '', expected: identifier after ','"),
        (",a", "found ',', expected: !, identifier, or 'end of string'"),
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
        ("a=(", "unable to parse requirement: found '(', expected: identifier"),
        ("!=a", "found '!=', expected: !, identifier, or 'end of string'"),
        (
            "a>b",
            "unable to parse requirement: values[0]: Invalid value: \"b\": for 'Gt', 'Lt' operators, the value must be \
             an integer",
        ),
    ];
    for (text, error) in cases {
        assert_eq!(LabelSelector::parse(text).map_err(|e| e.0), Err(error.to_owned()), "{text}");
    }
    let error = LabelSelector::parse("-a").map_err(|e| e.0).expect_err("a bad key");
    assert!(
        error.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must"),
        "{error}"
    );
    let error = LabelSelector::parse("a=-b").map_err(|e| e.0).expect_err("a bad value");
    assert!(error.starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-b\""), "{error}");
}

#[test]
fn a_selector_is_written_in_one_form() {
    let selector = LabelSelector::parse(" b notin (y,x), a ,!c,d!=1").expect("parses");
    assert_eq!(selector.to_string(), "a,b notin (x,y),!c,d!=1");
    assert_eq!(LabelSelector::parse("a in (b)").expect("parses").exact("a"), Some("b"));
}

#[test]
fn an_absent_selector_selects_nothing_and_an_empty_one_everything() {
    assert_eq!(LabelSelector::from_meta(None), Ok(LabelSelector::Nothing));
    let mut selector = metav1::LabelSelector::default();
    assert!(LabelSelector::from_meta(Some(&selector)).expect("valid").is_everything());
    selector.match_labels = Some(set(&[("a", "b")]));
    selector.match_expressions = Some(vec![metav1::LabelSelectorRequirement {
        key: "c".into(),
        operator: "In".into(),
        values: Some(vec!["d".into()]),
    }]);
    let typed = LabelSelector::from_meta(Some(&selector)).expect("valid");
    assert_eq!(typed.to_string(), "a=b,c in (d)");
    if let Some(e) = &mut selector.match_expressions {
        e[0].operator = "Odd".into();
    }
    let error = LabelSelector::from_meta(Some(&selector)).expect_err("odd operator");
    assert_eq!(error.0, "\"Odd\" is not a valid label selector operator");
    let mut errors = FieldErrors::new();
    validate_label_selector(&selector, &FieldPath::new("spec").child("selector"), &mut errors);
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["spec.selector.matchExpressions[0].operator: Invalid value: \"Odd\": not a valid selector operator"]
    );
}

#[test]
fn a_query_selects_by_fields() {
    let selector = FieldSelector::parse("b!=x,a==1\\,2").expect("parses");
    assert_eq!(selector.to_string(), "a=1\\,2,b!=x");
    assert_eq!(selector.exact("a"), Some("1,2"));
    assert_eq!(selector.exact("b"), None);
    assert!(selector.matches_with(|f| (f == "a").then_some("1,2")));
    assert!(!selector.matches_with(|f| Some(if f == "a" { "1,2" } else { "x" })));
    assert_eq!(
        FieldSelector::parse("bad").map_err(|e| e.0),
        Err("invalid selector: 'bad'; can't understand 'bad'".to_owned())
    );
    assert!(FieldSelector::parse("a=b=c").is_err());
    assert!(FieldSelector::parse("a=\\x").is_err());
    assert!(FieldSelector::parse(",").expect("parses").is_everything());
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(s in "[a-c=!<>(), \\\\]{0,20}") {
        if let Ok(selector) = LabelSelector::parse(&s) {
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector));
        }
        if let Ok(selector) = FieldSelector::parse(&s) {
            let mut again = FieldSelector::parse(&selector.to_string()).expect("its own text");
            let mut selector = selector;
            again.0.sort_by(|a, b| (&a.field, &a.value, a.equal).cmp(&(&b.field, &b.value, b.equal)));
            selector.0.sort_by(|a, b| (&a.field, &a.value, a.equal).cmp(&(&b.field, &b.value, b.equal)));
            prop_assert_eq!(again, selector);
        }
    }
}
