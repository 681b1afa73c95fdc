//! Explains every statement that the contract suite executes: none scans or sorts a table that
//! grows.
//!
//! No list of statements has to be maintained. Those of SQLite come from the one function that
//! prepares them, those of PostgreSQL from sqlx, both through trace events. After each case the new
//! ones are explained on an empty database of the same schema. Statements that may scan or sort are
//! listed below, with the reason.

use std::collections::BTreeSet;
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use serde_json::Value;
use sqlx::{Connection, Row};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use wharfage::store::postgres::{PostgresOptions, PostgresStore};
use wharfage::store::sqlite::SqliteStore;

use crate::bed;

/// Parts of the text of statements that may scan or sort, with the reason.
const ALLOWED: &[(&str, &str)] = &[
    ("FROM event ORDER BY id LIMIT", "reads the oldest rows, as many as it deletes"),
    ("FROM (SELECT 1 FROM upload LIMIT", "counts up to the limit"),
    (
        "WITH gone AS (DELETE FROM tag WHERE manifest_id = $1",
        "sorts the tags of one image, of which there are 1,000 at most",
    ),
    (
        "SELECT t.name FROM manifest m JOIN tag t ON t.manifest_id = m.id",
        "sorts the tags of one image, as above",
    ),
    (
        "FROM manifest_child e JOIN manifest m ON m.id = e.child_id WHERE e.parent_id",
        "sorts the children of one index",
    ),
    (
        "UNION SELECT UNNEST($3::bigint[])) ORDER BY digest FOR NO KEY UPDATE",
        "sorts the images that one push locks",
    ),
    ("FROM json_each(?1) k CROSS JOIN job j", "sorts one job of each kind"),
    ("UPDATE upload SET claimed_until = 0", "once, at the start of the one process"),
];

/// Indexes of the few running or dead jobs.
const SMALL_INDEXES: &[&str] = &["job_running", "job_leases", "job_dead"];

/// Tables with at most one row per registry or table.
const SMALL: &[&str] = &["registry", "account_setting", "_sqlx_migrations", "sqlite_schema"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Database {
    Sqlite,
    Postgres,
}

/// Statements that were executed, and those that were explained.
#[derive(Default)]
struct CheckedPlans {
    new: BTreeSet<(Database, String)>,
    explained: BTreeSet<(Database, String)>,
}

static CHECKED: OnceLock<Mutex<CheckedPlans>> = OnceLock::new();

fn seen() -> std::sync::MutexGuard<'static, CheckedPlans> {
    CHECKED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Collects statements from their trace events.
struct Recorder;

impl<S: tracing::Subscriber> Layer<S> for Recorder {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        matches!(metadata.target(), "wharfage::sqlite" | "sqlx::query")
    }

    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let database = if event.metadata().target() == "sqlx::query" {
            Database::Postgres
        } else {
            Database::Sqlite
        };
        let mut statement = Statement(String::new());
        event.record(&mut statement);
        let text = statement.0.split_whitespace().collect::<Vec<_>>().join(" ");
        let verbs = ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"];
        if !verbs.iter().any(|verb| text.starts_with(verb)) || text.contains("_sqlx_migrations") {
            return;
        }
        let mut seen = seen();
        let statement = (database, text);
        if !seen.explained.contains(&statement) {
            seen.new.insert(statement);
        }
    }
}

struct Statement(String);

impl Visit for Statement {
    fn record_str(&mut self, field: &Field, value: &str) {
        if matches!(field.name(), "statement" | "db.statement") {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

/// Starts recording the statements of this process.
pub fn record() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Recorder);
        tracing::subscriber::set_global_default(subscriber)
            .expect("nothing else records in this process");
    });
}

/// Explains the statements executed since the last call.
///
/// # Panics
/// When a statement scans or sorts a table that grows.
pub async fn check() {
    let new: Vec<(Database, String)> = {
        let mut seen = seen();
        let new = std::mem::take(&mut seen.new);
        new.into_iter().filter(|statement| seen.explained.insert(statement.clone())).collect()
    };
    let of =
        |database| new.iter().filter(move |(of, _)| *of == database).map(|(_, sql)| sql.as_str());
    let mut faults = sqlite(of(Database::Sqlite));
    faults.extend(postgres(of(Database::Postgres).collect()).await);
    assert!(faults.is_empty(), "what a table's growth makes slower:\n\n{}", faults.join("\n\n"));
}

fn allowed(sql: &str) -> bool {
    ALLOWED.iter().any(|(part, _)| sql.contains(part))
}

fn sqlite<'s>(statements: impl Iterator<Item = &'s str>) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metadata.sqlite");
    let mut connection = None;
    let mut faults = Vec::new();
    for sql in statements.filter(|sql| !allowed(sql)) {
        let connection = connection.get_or_insert_with(|| {
            drop(SqliteStore::open(&path).unwrap());
            rusqlite::Connection::open(&path).unwrap()
        });
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps: Vec<String> =
            statement.raw_query().mapped(|row| row.get(3)).map(Result::unwrap).collect();
        if steps.iter().any(|step| grows_with_a_table(step)) {
            faults.push(format!("SQLite: {sql}\n  {}", steps.join("\n  ")));
        }
    }
    faults
}

/// Returns true if a step of SQLite's plan scans a table or sorts its rows. The statement bounds a
/// subquery's rows and an array's members. Rows that are sorted only by the last terms come in
/// small groups.
fn grows_with_a_table(step: &str) -> bool {
    let scans = step.strip_prefix("SCAN ").is_some_and(|table| {
        let name = table.split(' ').next().unwrap_or_default();
        !table.contains("VIRTUAL TABLE")
            && !table.starts_with('(')
            && !table.starts_with("CONSTANT ROW")
            && !SMALL.contains(&name)
            && !SMALL_INDEXES.iter().any(|index| table.contains(index))
    });
    let sorts = step.starts_with("USE TEMP B-TREE FOR")
        && !step.contains("LAST TERM")
        && !step.contains("RIGHT PART");
    // Nearly all blobs are live, so this is a scan.
    let of_a_state = step.ends_with("blob_by_lease (state=?)");
    scans || sorts || of_a_state
}

async fn postgres(statements: Vec<&str>) -> Vec<String> {
    if statements.is_empty() {
        return Vec::new();
    }
    let url = bed::postgres().database().await;
    PostgresStore::connect(&url, PostgresOptions::default()).await.unwrap().close().await;
    let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(concat!("/* test */ ", include_str!("plans.sql")))
        .execute(&mut connection)
        .await
        .unwrap();
    // With these settings the planner scans or sorts only if there is no other plan.
    let settings =
        "/* test */ SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_sort = off;
                    SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";
    sqlx::raw_sql(settings).execute(&mut connection).await.unwrap();
    let mut faults = Vec::new();
    for sql in statements.iter().filter(|sql| sql.contains("digest = ANY(")) {
        // The planner assumes that the two columns are independent. For a large repository and a
        // blob that all repositories have it expects so many rows that it reads the whole table.
        // The small tables of this check do not show that.
        faults.push(format!(
            "PostgreSQL: {sql}\n  looks up many digests at once: use UNNEST and LATERAL … LIMIT 1"
        ));
    }
    for (number, sql) in statements.into_iter().filter(|sql| !allowed(sql)).enumerate() {
        let parameters = (1..100).take_while(|number| sql.contains(&format!("${number}"))).count();
        let nulls = vec!["NULL"; parameters].join(", ");
        let arguments = if parameters == 0 { String::new() } else { format!("({nulls})") };
        let prepare = format!("/* test */ PREPARE s{number} AS {sql}");
        let explain = format!("/* test */ EXPLAIN (FORMAT JSON) EXECUTE s{number} {arguments}");
        if let Err(error) =
            sqlx::raw_sql(sqlx::AssertSqlSafe(prepare)).execute(&mut connection).await
        {
            faults.push(format!("PostgreSQL: {sql}\n  cannot be explained: {error}"));
            continue;
        }
        let row =
            sqlx::raw_sql(sqlx::AssertSqlSafe(explain)).fetch_one(&mut connection).await.unwrap();
        let plan: Value = serde_json::from_str(row.try_get_unchecked(0).unwrap()).unwrap();
        let mut steps = Vec::new();
        walk(&plan[0]["Plan"], false, &mut steps);
        if !steps.is_empty() {
            faults.push(format!("PostgreSQL: {sql}\n  {}", steps.join("\n  ")));
        }
    }
    connection.close().await.unwrap();
    faults
}

/// Collects the steps that grow with a table, in a plan's node and below. `limited` means below a
/// `Limit`, which stops a scan in order.
fn walk(node: &Value, limited: bool, faults: &mut Vec<String>) {
    let kind = node["Node Type"].as_str().unwrap_or_default();
    let table = node["Relation Name"].as_str().unwrap_or_default();
    let index = node["Index Name"].as_str().unwrap_or_default();
    match kind {
        "Seq Scan" if !SMALL.contains(&table) => faults.push(format!("Seq Scan on {table}")),
        // With sequential scans off, the planner scans a whole index instead.
        "Index Scan" | "Index Only Scan"
            if node.get("Index Cond").is_none() && !limited && !SMALL_INDEXES.contains(&index) =>
        {
            faults.push(format!("scan of the whole index {index}"));
        }
        "Sort" if !children(node).iter().all(bounded) => {
            faults.push(format!("Sort by {}", node["Sort Key"]));
        }
        _ => {}
    }
    // A subquery has its own limit.
    let limited = kind == "Limit" || (limited && !matches!(kind, "Sort" | "Aggregate"));
    for child in children(node) {
        walk(child, limited, faults);
    }
}

fn children(node: &Value) -> &[Value] {
    node["Plans"].as_array().map_or(&[], Vec::as_slice)
}

/// Returns true if the statement bounds a node's rows, by a limit or by the members of an array.
fn bounded(node: &Value) -> bool {
    match node["Node Type"].as_str().unwrap_or_default() {
        "Limit" | "Function Scan" | "Result" | "Values Scan" | "CTE Scan" | "WorkTable Scan" => {
            true
        }
        // One row of a table for each member of an array of keys.
        "Index Scan" | "Index Only Scan" => {
            node["Index Cond"].as_str().is_some_and(|condition| condition.contains("= ANY ("))
        }
        // The inner side is looked up for each row of the outer one.
        "Nested Loop" => children(node).first().is_some_and(bounded),
        // The rows that a statement changes come from its children.
        _ => !children(node).is_empty() && children(node).iter().all(bounded),
    }
}
