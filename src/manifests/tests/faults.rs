//! Text that cannot be read: the message to its author, and that no message has the parser's words.

use super::*;

/// Words of parsers, of serde and of the system that say nothing to those who write manifests.
const INTERNALS: [&str; 24] = [
    "DuplicateKey",
    "budget",
    "Budget",
    "breach",
    "untagged enum",
    "variant",
    "invalid type",
    "invalid value",
    "invalid length",
    "deserializ",
    "serde",
    "saphyr",
    "granit",
    "visitor",
    "scalar",
    "simple key",
    "flow mapping",
    "flow sequence",
    "block mapping",
    "while parsing",
    "while scanning",
    "recursion limit",
    "unexpected e",
    "os error",
];

/// The first such word of a message.
pub(super) fn internals(message: &str) -> Option<&'static str> {
    INTERNALS.into_iter().find(|word| message.contains(word))
}

#[test]
fn what_is_no_yaml_is_explained_with_its_line() {
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
    let fields = (0..10_002).map(|n| format!("k{n}: 1\n")).collect::<String>();
    for (text, line, reason) in [
        ("a: 1\nb: 2\na: 3\n", "line 3", "a is given twice: take one out"),
        ("{a: 1, a: 2}", "line 1", "a is given twice"),
        ("a: 1\n  b: 2\n", "line 2", "a colon is where none can be"),
        ("a:\n  b: 1\n c: 2\n", "line 3", "the line does not fit those above it"),
        ("a: 1\n\tb: 2\n", "line 1", "a tab is where YAML wants spaces"),
        ("a: [1, 2\n", "line", "a bracket ([ or {) has no partner"),
        ("a: {b: 1\n", "line", "a bracket ([ or {) has no partner"),
        ("a: [1, 2}\n", "line 1", "a bracket ([ or {) has no partner"),
        ("a: ]\n", "line 1", "a bracket ([ or {) has no partner"),
        ("a: \"x\n", "line", "a quotation mark has no partner"),
        ("a: 'x\n", "line", "a quotation mark has no partner"),
        ("a: \"x\" y\n", "line 1", "something follows the closing quotation mark"),
        ("a: \"\\q\"\n", "line 1", "a backslash in double quotes begins nothing that is known"),
        ("a: \"\\xzz\"\n", "line 1", "a backslash in double quotes begins nothing that is known"),
        ("a: @x\n", "line 1", "a character here cannot begin a value"),
        ("a: `x`\n", "line 1", "a character here cannot begin a value"),
        ("a: b: c\n", "line 1", "a colon is where none can be"),
        ("a: &x 1\nb: *y\n", "line 2", "an alias (*) refers to nothing that was named"),
        ("a: *.example.com\n", "line 1", "an alias (*) refers to nothing that was named"),
        ("a: &x [*x]\n", "line 1", "an alias (*) refers to something that contains it"),
        ("a: .nan\n", "line 1", ".nan is no number that JSON has"),
        ("a: -.inf\n", "line 1", "-.inf is no number that JSON has"),
        ("a: 1e999\n", "line 1", "1e999 is no number that JSON has"),
        ("? [a, b]\n: 1\n", "line 1", "a key must be text"),
        ("? {a: b}\n: 1\n", "line 1", "a key must be text"),
        ("a: !!int x\n", "line 1", "a tag (!) does not go with the value"),
        ("a: !!binary '%'\n", "line 1", "!!binary"),
        ("<<: 1\n", "line 1", "<< takes a mapping"),
        ("%YAML 9\n---\na: 1\n", "line 1", "the text is no YAML"),
        ("- a\nb: 1\n", "line 2", "the text is no YAML from here on"),
        (&deep, "line 1", "it nests too deep"),
        (&deep[4_900..5_100], "line 1", "it nests more than 64 levels deep"),
        (bomb, "line", "what its aliases (*) stand for makes more than 20000 values"),
        (&fields, "", "a mapping has more than 10000 fields"),
    ] {
        let problem = load(text).unwrap_err().to_string();
        let start = text.get(..40).unwrap_or(text);
        let (head, message) = problem
            .split_once(": is not valid YAML: ")
            .unwrap_or_else(|| panic!("{start:?}: {problem}"));
        assert_eq!(head, "a.yaml", "{start:?}");
        assert!(message.starts_with(line) && message.contains(reason), "{start:?}: {message}");
        assert_eq!(internals(&problem), None, "{start:?}: {problem}");
    }
}

#[test]
fn the_hint_has_the_authors_own_text() {
    for scalar in [
        "012345678901",
        "123456789012",
        "1.10",
        "1.0",
        "yes",
        "No",
        "on",
        "OFF",
        "true",
        "y",
        "0o17",
        "017",
        "0x1F",
        "1_000",
        "+5",
        "-1",
        "1e3",
        ".5",
        "5.0",
        "12345678901234567890123",
    ] {
        let expected = format!("must be a string: put {scalar} in quotes");
        for text in [
            manifest(
                "Registry",
                "home",
                &format!("managed: {{}}\nregistryId: {scalar}  # the account\n"),
            ),
            manifest(
                "Repository",
                "api",
                &format!("registryRef: {{name: home}}\ntags: {{ä: \"ü\", a: {scalar} , b: c}}"),
            ),
            manifest(
                "Repository",
                "api",
                &format!("registryRef: {{name: home}}\ntags:\n  a: &it {scalar}\n  b: *it"),
            ),
        ] {
            let problems = load(&text).unwrap_err().to_string();
            assert!(problems.lines().all(|line| line.ends_with(&expected)), "{scalar}: {problems}");
        }
    }
    let null =
        manifest("PullSecret", "pull", "registryRef: {name: home}\nserviceAccounts: [~, default]");
    assert!(
        load(&null)
            .unwrap_err()
            .to_string()
            .ends_with("serviceAccounts[0]: must be a string, not ~")
    );
    let listed = manifest("Repository", "api", "registryRef: {name: home}\ndeletionPolicy: no");
    assert!(
        load(&listed)
            .unwrap_err()
            .to_string()
            .ends_with("spec.deletionPolicy: no is none of Retain, Delete")
    );
    let date = policy(&[&UNTAGGED.replace("14", "2026-11-30")]);
    assert!(
        load(&date)
            .unwrap_err()
            .to_string()
            .ends_with("must be a whole number, not \"2026-11-30\"")
    );
}

#[test]
fn a_number_that_tools_read_differently_is_refused() {
    let with = |number: &str| load(&policy(&[&UNTAGGED.replace("14", number)]));
    for (number, expected) in [
        (
            "010",
            "010 is 10 to some tools and 8 to others: write it without the zero in front, or put it in quotes",
        ),
        (
            "0777",
            "0777 is 777 to some tools and 511 to others: write it without the zero in front, or put it in quotes",
        ),
    ] {
        let problems = with(number).unwrap_err().to_string();
        assert!(
            problems.ends_with(&format!("spec.rules[0].selection.countNumber: {expected}")),
            "{problems}"
        );
    }
    for (number, expected) in [
        ("0o17", 15),
        ("0x10", 16),
        ("1_000", 1000),
        ("08", 8),
        ("007", 7),
        ("14.0", 14),
        ("1e2", 100),
    ] {
        let rules = with(number).unwrap().lifecycle_policies[0].resource.spec.rules.clone();
        assert_eq!(rules[0].selection.count_number, expected, "{number}");
    }
}

#[test]
fn of_a_document_full_of_faults_some_are_reported() {
    let fields: String = (0..9_000).map(|n| format!("field{n}: 1\n")).collect();
    let problems =
        load(&manifest("Repository", "api", &format!("registryRef: {{name: home}}\n{fields}")))
            .unwrap_err()
            .problems;
    assert_eq!(problems.len(), 51);
    assert_eq!(problems[50].message, "has 8950 more faults");
}
