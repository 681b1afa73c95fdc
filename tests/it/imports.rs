//! Checks the direction of imports, by a scan of the source text.
//!
//! The top-level modules of a crate import each other without cycles, inside `operator` only a parent and its children may
//! import each other, and the modules of `registry` import lower layers only. Between crates, cargo sees to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A module's path without `crate`.
type Module = Vec<String>;

/// Which module imports which.
type Graph = BTreeMap<Module, BTreeSet<Module>>;

/// Reads the modules of a crate, with their text; `lib.rs` is the module without a path. Modules of tests are left out: they may
/// import anything.
fn modules(source: &Path) -> BTreeMap<Module, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(source.to_owned(), Module::new())];
    while let Some((folder, module)) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let child = [module.clone(), vec![name.clone()]].concat();
            match (path.is_dir(), name.as_str()) {
                // Another crate.
                (true, _) if path.join("Cargo.toml").exists() => {}
                (true, _) => folders.push((path, child)),
                (false, "tests" | "properties" | "naive" | "main" | "Cargo") => {}
                (false, "mod" | "lib") => {
                    drop(found.insert(module.clone(), std::fs::read_to_string(path).unwrap()))
                }
                (false, _) => drop(found.insert(child, std::fs::read_to_string(path).unwrap())),
            }
        }
    }
    found
}

/// Removes comments, the text of literals, and modules of tests at the end of a file.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut test = false;
    for line in text.lines() {
        if test && line.trim_start().starts_with("mod ") && line.ends_with('{') {
            break;
        }
        test = line.trim() == "#[cfg(test)]";
        let line = line.replace("\\\\", "").replace("\\\"", "");
        let line: String = line.split('"').step_by(2).collect();
        // A visibility is no import.
        let line = line.replace("pub(in crate::", "pub(").replace("pub(in super::", "pub(");
        code.push_str(line.split("//").next().unwrap());
        code.push('\n');
    }
    code
}

/// Expands the braces of a `use` into paths.
fn expand(tree: &str) -> Vec<String> {
    let Some((prefix, rest)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let inside = rest.trim_end().strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for character in inside.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(character);
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts
        .flat_map(|part| expand(part.trim()))
        .map(|part| format!("{}{part}", prefix.trim()))
        .collect()
}

/// The module that a path in `module` leads into, and whether the path is the module itself.
fn resolve(
    known: &BTreeMap<Module, String>,
    module: &Module,
    path: &[&str],
) -> Option<(Module, bool)> {
    let mut place = module.clone();
    let mut names = path.iter().peekable();
    match *names.peek()? {
        &"crate" => {
            place.clear();
            names.next();
        }
        &"self" | &"super" => {
            while let Some(up) = names.next_if(|name| matches!(**name, "self" | "super")) {
                if *up == "super" {
                    place.pop();
                }
            }
        }
        _ => return None,
    }
    for name in names.clone() {
        let child = [place.clone(), vec![(*name).to_owned()]].concat();
        if !known.contains_key(&child) {
            return known.contains_key(&place).then_some((place, false));
        }
        place = child;
    }
    known.contains_key(&place).then_some((place, true))
}

/// Finds the paths in code that are no `use`, as lists of names.
fn paths(code: &str) -> Vec<Vec<&str>> {
    let is_name =
        |character: char| character.is_alphanumeric() || character == '_' || character == ':';
    let words = code.split(|character| !is_name(character)).filter(|word| word.contains("::"));
    words.map(|word| word.split("::").filter(|name| !name.is_empty()).collect()).collect()
}

/// Reads which module imports which.
fn imports(known: &BTreeMap<Module, String>) -> Graph {
    let mut graph = Graph::new();
    for (module, text) in known {
        let text = code(text);
        // Names that stand for modules in this file.
        let mut names: BTreeMap<String, Module> = known
            .keys()
            .filter(|child| child.len() == module.len() + 1 && child.starts_with(module))
            .map(|child| (child.last().unwrap().clone(), child.clone()))
            .collect();
        let mut imported = BTreeSet::new();
        let mut body = String::new();
        let mut uses = Vec::new();
        let mut left = text.as_str();
        while let Some(at) = left.find("use ") {
            let begins = left[..at].chars().last().is_none_or(|before| before.is_whitespace());
            let (before, after) = left.split_at(at);
            body.push_str(before);
            match after.split_once(';') {
                Some((statement, after)) if begins => {
                    uses.push(statement["use ".len()..].to_owned());
                    left = after;
                }
                _ => left = &after["use ".len()..],
            }
        }
        body.push_str(left);
        for path in uses
            .iter()
            .flat_map(|tree| expand(&tree.split_whitespace().collect::<Vec<_>>().join(" ")))
        {
            let (path, alias) = path
                .split_once(" as ")
                .map_or((path.as_str(), None), |(path, alias)| (path, Some(alias)));
            let mut path: Vec<&str> = path.split("::").map(str::trim).collect();
            if path.len() > 1 && path.last() == Some(&"self") {
                path.pop();
            }
            if names.contains_key(path[0]) {
                path.insert(0, "self");
            }
            let Some((target, is_module)) = resolve(known, module, &path) else { continue };
            if is_module {
                names.insert(alias.unwrap_or(path[path.len() - 1]).to_owned(), target.clone());
            }
            imported.insert(target);
        }
        for path in paths(&body) {
            let path = match names.get(path[0]) {
                Some(target) => {
                    let target = target.iter().map(String::as_str);
                    ["crate"].into_iter().chain(target).chain(path[1..].iter().copied()).collect()
                }
                None => path,
            };
            imported.extend(resolve(known, module, &path).map(|(target, _)| target));
        }
        imported.remove(module);
        graph.insert(module.clone(), imported);
    }
    graph
}

/// Finds the groups of modules that import each other, directly or through others.
fn cycles(graph: &Graph, of: &BTreeSet<Module>) -> Vec<BTreeSet<Module>> {
    let reach = |from: &Module| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(module) = next.pop() {
            for target in
                graph.get(module).into_iter().flatten().filter(|target| of.contains(*target))
            {
                if reached.insert(target.clone()) {
                    next.push(target);
                }
            }
        }
        reached
    };
    let reached: BTreeMap<&Module, BTreeSet<Module>> =
        of.iter().map(|module| (module, reach(module))).collect();
    let mut groups = BTreeSet::new();
    for (module, targets) in &reached {
        let mut group: BTreeSet<Module> =
            targets.iter().filter(|target| reached[*target].contains(*module)).cloned().collect();
        group.insert((*module).clone());
        if group.len() > 1 {
            groups.insert(group);
        }
    }
    groups.into_iter().collect()
}

/// Finds the cycles that are more than a parent and its descendants: without the parent, those have none.
fn cycles_beyond_families(graph: &Graph, of: &BTreeSet<Module>) -> Vec<BTreeSet<Module>> {
    let beyond = |group: BTreeSet<Module>| match group.first() {
        // Sorted, so that a parent is before its descendants.
        Some(parent) if group.iter().all(|module| module.starts_with(parent)) => {
            let parent = parent.clone();
            cycles_beyond_families(
                graph,
                &group.into_iter().filter(|module| *module != parent).collect(),
            )
        }
        _ => vec![group],
    };
    cycles(graph, of).into_iter().flat_map(beyond).collect()
}

/// Joins modules into their top-level modules.
fn top_level(graph: &Graph) -> Graph {
    let mut joined = Graph::new();
    for (module, imported) in graph.iter().filter(|(module, _)| !module.is_empty()) {
        let from = module[..1].to_vec();
        let imported = imported.iter().filter(|target| !target.is_empty());
        let targets = imported.map(|target| target[..1].to_vec()).filter(|target| *target != from);
        joined.entry(from.clone()).or_default().extend(targets);
    }
    joined
}

/// The layers of the registry, from the lowest. A module may import modules of lower layers only.
const REGISTRY_LAYERS: [&[&str]; 4] = [
    &["auth", "config", "json", "metrics"],
    &["message", "service"],
    &["oci", "ecr", "query"],
    &["http"],
];

/// Finds the imports between top-level modules that do not lead to a lower layer, and modules without a layer.
fn against_layers(graph: &Graph, layers: &[&[&str]]) -> Vec<String> {
    let layer = |module: &Module| match module.first() {
        // The root re-exports modules of several layers, so an import through it hides its target.
        None => Some(layers.len()),
        Some(name) => layers.iter().position(|layer| layer.contains(&name.as_str())),
    };
    let mut found = Vec::new();
    for (module, imported) in graph.iter().filter(|(module, _)| !module.is_empty()) {
        let own = layer(module);
        if own.is_none() {
            found.push(format!("{} has no layer", module.join("::")));
        }
        let other = imported.iter().filter(|target| target.first() != module.first());
        let wrong = other.filter(|target| layer(target) >= own);
        found.extend(
            wrong.map(|target| {
                format!("{} imports crate::{}", module.join("::"), target.join("::"))
            }),
        );
    }
    found
}

fn all(graph: &Graph) -> BTreeSet<Module> {
    graph.keys().cloned().collect()
}

#[test]
fn no_import_cycles_between_modules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folders = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
    let crates: Vec<_> = folders.filter(|path| path.join("Cargo.toml").exists()).collect();
    assert!(crates.len() > 8, "{crates:?}");
    let mut found = 0;
    for path in crates.iter().chain([&root]) {
        let graph = imports(&modules(path));
        found += graph.values().map(BTreeSet::len).sum::<usize>();
        // Parts of a layer may name each other; the layers of a crate that has several may not.
        if path.ends_with("operator") {
            assert_eq!(
                cycles_beyond_families(&graph, &all(&graph)),
                Vec::<BTreeSet<Module>>::new()
            );
        } else if path.ends_with("domain") || path.ends_with("process") || *path == root {
            let top = top_level(&graph);
            assert_eq!(
                cycles(&top, &all(&top)),
                Vec::<BTreeSet<Module>>::new(),
                "{}",
                path.display()
            );
        }
    }
    assert!(found > 500, "the scan finds imports");
}

#[test]
fn registry_modules_import_lower_layers_only() {
    let known = modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/registry"));
    assert_eq!(against_layers(&imports(&known), &REGISTRY_LAYERS), Vec::<String>::new());
    for (module, text) in
        known.iter().filter(|(module, _)| module.first().is_some_and(|name| name == "service"))
    {
        let text = code(text);
        let http =
            paths(&text).into_iter().find(|path| ["http", "http_body", "hyper"].contains(&path[0]));
        assert_eq!(http, None, "{}", module.join("::"));
    }
}

fn made_up(files: &[(&str, &str)]) -> Graph {
    let module = |path: &str| path.split('/').map(str::to_owned).collect::<Module>();
    imports(&files.iter().map(|(path, text)| (module(path), (*text).to_owned())).collect())
}

fn beyond(files: &[(&str, &str)]) -> usize {
    let graph = made_up(files);
    cycles_beyond_families(&graph, &all(&graph)).len()
}

#[test]
fn import_check_finds_every_way_to_import() {
    for text in [
        "use crate::a::b::Thing;",
        "pub(super) use super::b::{Thing, other::{self, More}};",
        "use super::{c,\n    b::Thing as Other};",
        "use crate::a; fn f() { a::b::thing() }",
        "use crate::a as other; fn f() { other::b::thing() }",
        "fn f() -> super::b::Thing {}",
        "pub(in crate::a) fn f(it: &'static crate::a::b::Thing) {}",
    ] {
        let graph = made_up(&[("a", ""), ("a/b", ""), ("a/c", text)]);
        let (from, to) = (["a", "c"].map(str::to_owned), ["a", "b"].map(str::to_owned));
        assert!(graph[from.as_slice()].contains(to.as_slice()), "{text}");
    }
    for text in [
        "// use crate::a::b::Thing;",
        "const A: &str = \"use crate::a::b::Thing;\";",
        "pub(in crate::a::b) fn f() {}",
        "#[cfg(test)]\nmod tests {\n    use crate::a::b::Thing;\n}",
        "use other::a::b;",
    ] {
        assert!(
            made_up(&[("a", ""), ("a/b", ""), ("a/c", text)]).values().all(BTreeSet::is_empty),
            "{text}"
        );
    }
}

#[test]
fn import_check_allows_parents_and_children_only() {
    let root = ("o", "pub mod a; pub mod b;");
    assert_eq!(beyond(&[root, ("o/a", "use super::b::B;"), ("o/b", "")]), 0);
    assert_eq!(beyond(&[root, ("o/a", "use super::b::B;"), ("o/b", "use super::a::A;")]), 1);
    let family = ("o/a/c", "use super::A;");
    assert_eq!(beyond(&[root, ("o/a", "mod c; pub use c::C;"), family]), 0);
    let siblings = [("o/a/c", "use super::{A, d::D};"), ("o/a/d", "use super::c::C;")];
    assert_eq!(beyond(&[root, ("o/a", "mod c; pub use c::C;"), siblings[0], siblings[1]]), 1);
    // Through a child: the family is not alone in its cycle.
    let through = ("o/a/c", "use crate::o::b::B;");
    assert_eq!(
        beyond(&[root, ("o/a", "mod c; pub use c::C;"), through, ("o/b", "use super::a::A;")]),
        1
    );
}

#[test]
fn import_check_finds_imports_against_the_layers() {
    let check = |text: &str| {
        let graph = made_up(&[("low", ""), ("a", ""), ("b", ""), ("a/c", text), ("high", "")]);
        against_layers(&graph, &[&["low"], &["a", "b"], &["high"]])
    };
    for right in ["use crate::low::L;", "use crate::a::A;", "use super::A;"] {
        assert_eq!(check(right), Vec::<String>::new(), "{right}");
    }
    for (wrong, target) in [("use crate::b::B;", "b"), ("fn f() { crate::high::h() }", "high")] {
        assert_eq!(check(wrong), [format!("a::c imports crate::{target}")]);
    }
    let unknown = made_up(&[("low", ""), ("other", "")]);
    assert_eq!(against_layers(&unknown, &[&["low"]]), ["other has no layer"]);
    let through_root = imports(&BTreeMap::from([
        (Module::new(), "pub use high::H;".to_owned()),
        (vec!["low".to_owned()], "use crate::H;".to_owned()),
        (vec!["high".to_owned()], String::new()),
    ]));
    assert_eq!(against_layers(&through_root, &[&["low"], &["high"]]), ["low imports crate::"]);
}

#[test]
fn import_check_joins_top_level_modules() {
    let files = [("o", ""), ("o/a", "use crate::p::P;"), ("p", ""), ("p/b", "use crate::o::O;")];
    let graph = made_up(&files);
    assert_eq!(cycles(&graph, &all(&graph)).len(), 0);
    let top = top_level(&graph);
    assert_eq!(cycles(&top, &all(&top)).len(), 1);
}
