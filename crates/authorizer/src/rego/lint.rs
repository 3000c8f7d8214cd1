//! A look at the parsed modules before they are taken: every function that is called exists, also in branches that
//! hardly ever run, none does I/O or draws chance, and nothing calls itself or nests so deep that the stack would end.

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{BUILTINS, Expr, Literal, Module, Query, Ref, Rule, RuleHead, Span};

use super::RegoError;
use super::builtins;

/// Rules and functions that use one another, one inside the other: each takes some frames of a worker's stack.
const MAX_DEPTH: usize = 32;
/// Rules of one policy.
const MAX_RULES: usize = 2_000;

/// Known to regorus or OPA, and not to be had here.
const REFUSED: [(&str, &str); 14] = [
    ("http.send", "it calls out while a request waits"),
    ("net.lookup_ip_addr", "it calls out while a request waits"),
    ("opa.runtime", "it shows the process's environment"),
    ("rand.intn", "a decision does not depend on chance"),
    ("uuid.rfc4122", "a decision does not depend on chance"),
    ("net.cidr_expand", "its result has no bound; use net.cidr_contains"),
    ("bits.lsh", "its result has no bound"),
    ("numbers.range_step", "its result has no bound; use numbers.range"),
    ("graph.reachable_paths", "its result has no bound; use graph.reachable"),
    ("strings.render_template", "it is not built in"),
    ("yaml.unmarshal", "it is not built in; use json.unmarshal"),
    ("crypto.md5", "it is broken; use crypto.sha256"),
    ("io.jwt.encode_sign", "a policy signs nothing"),
    ("io.jwt.encode_sign_raw", "a policy signs nothing"),
];

pub(super) fn check(modules: &[Ref<Module>]) -> Result<(), RegoError> {
    let names = Names::of(modules);
    if names.rules.len() > MAX_RULES {
        let message = format!("{} rules; at most {MAX_RULES} are taken", names.rules.len());
        return Err(RegoError {
            module: None,
            place: None,
            message,
        });
    }
    let mut graph: BTreeMap<String, (Span, BTreeSet<String>)> = BTreeMap::new();
    for module in modules {
        let package =
            path_of(&module.package.refr).ok_or_else(|| error(module.package.refr.span(), "a computed package"))?;
        let imports = imports_of(module);
        for rule in &module.policy {
            let mut walk = Walk {
                names: &names,
                package: &package,
                imports: &imports,
                uses: BTreeSet::new(),
            };
            walk.rule(rule)?;
            let name = format!("data.{package}.{}", name_of(rule).unwrap_or_default());
            let entry = graph
                .entry(name)
                .or_insert_with(|| (rule.span().clone(), BTreeSet::new()));
            entry.1.extend(walk.uses);
        }
    }
    Depths {
        graph: &graph,
        functions: &names.functions,
        known: BTreeMap::new(),
        open: Vec::new(),
    }
    .check()
}

fn error(span: &Span, message: &str) -> RegoError {
    RegoError {
        module: Some(span.source.get_path().clone()),
        place: Some((span.line, span.col)),
        message: message.to_owned(),
    }
}

/// `a.b["c"]` as `a.b.c`; `None` if a part is computed.
fn path_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Var { span, .. } => Some(span.text().to_owned()),
        Expr::RefDot { refr, field, .. } => Some(format!("{}.{}", path_of(refr)?, field.0.text())),
        Expr::RefBrack { refr, index, .. } => match index.as_ref() {
            Expr::String { value, .. } => Some(format!("{}.{}", path_of(refr)?, value.as_string().ok()?)),
            _ => None,
        },
        _ => None,
    }
}

/// The longest beginning of a reference that is not computed.
fn root_of(expr: &Expr) -> Option<String> {
    path_of(expr).or_else(|| match expr {
        Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } => root_of(refr),
        _ => None,
    })
}

/// The name of a rule in its package, without what is computed behind it.
fn name_of(rule: &Rule) -> Option<String> {
    match rule {
        Rule::Spec {
            head: RuleHead::Compr { refr, .. } | RuleHead::Set { refr, .. } | RuleHead::Func { refr, .. },
            ..
        }
        | Rule::Default { refr, .. } => root_of(refr),
    }
}

/// Alias to target.
fn imports_of(module: &Module) -> BTreeMap<String, String> {
    let imports = module.imports.iter().filter_map(|import| {
        let target = path_of(&import.refr)?;
        let alias = match &import.r#as {
            Some(alias) => alias.text().to_owned(),
            None => target.rsplit('.').next()?.to_owned(),
        };
        Some((alias, target))
    });
    imports.collect()
}

/// What the modules define, by full path.
struct Names {
    functions: BTreeSet<String>,
    rules: BTreeSet<String>,
}

impl Names {
    fn of(modules: &[Ref<Module>]) -> Self {
        let mut names = Self {
            functions: BTreeSet::new(),
            rules: BTreeSet::new(),
        };
        for module in modules {
            let Some(package) = path_of(&module.package.refr) else {
                continue;
            };
            for rule in &module.policy {
                let Some(name) = name_of(rule) else { continue };
                let path = format!("data.{package}.{name}");
                let function = match rule.as_ref() {
                    Rule::Spec {
                        head: RuleHead::Func { .. },
                        ..
                    } => true,
                    Rule::Spec { .. } => false,
                    Rule::Default { args, .. } => !args.is_empty(),
                };
                if function {
                    names.functions.insert(path.clone());
                }
                names.rules.insert(path);
            }
        }
        names
    }

    /// A name as it stands in a package, made a full path.
    fn resolve(&self, name: &str, package: &str, imports: &BTreeMap<String, String>) -> Vec<String> {
        let (first, rest) = name.split_once('.').map_or((name, ""), |(first, rest)| (first, rest));
        let mut found = vec![format!("data.{package}.{name}"), name.to_owned()];
        if let Some(target) = imports.get(first) {
            found.insert(
                0,
                if rest.is_empty() {
                    target.clone()
                } else {
                    format!("{target}.{rest}")
                },
            );
        }
        found
    }
}

struct Walk<'n> {
    names: &'n Names,
    package: &'n str,
    imports: &'n BTreeMap<String, String>,
    /// Rules and functions that this one uses.
    uses: BTreeSet<String>,
}

impl Walk<'_> {
    fn rule(&mut self, rule: &Rule) -> Result<(), RegoError> {
        match rule {
            Rule::Default { refr, args, value, .. } => {
                self.exprs([refr, value])?;
                self.exprs(args)
            }
            Rule::Spec { head, bodies, .. } => {
                let (refr, rest, assign) = match head {
                    RuleHead::Compr { refr, assign, .. } => (refr, &[][..], assign.as_ref()),
                    RuleHead::Set { refr, key, .. } => (refr, key.as_slice(), None),
                    RuleHead::Func { refr, args, assign, .. } => (refr, args.as_slice(), assign.as_ref()),
                };
                self.indices(refr)?;
                self.exprs(rest)?;
                self.exprs(assign.map(|assign| &assign.value))?;
                for body in bodies {
                    self.exprs(body.assign.as_ref().map(|assign| &assign.value))?;
                    self.query(&body.query)?;
                }
                Ok(())
            }
        }
    }

    fn query(&mut self, query: &Query) -> Result<(), RegoError> {
        for statement in &query.stmts {
            match &statement.literal {
                Literal::SomeVars { .. } => {}
                Literal::SomeIn {
                    key, value, collection, ..
                } => {
                    self.exprs(key)?;
                    self.exprs([value, collection])?;
                }
                Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => self.expr(expr)?,
                Literal::Every { domain, query, .. } => {
                    self.expr(domain)?;
                    self.query(query)?;
                }
            }
            for with in &statement.with_mods {
                // With it, any built-in could be called under another's name.
                match root_of(&with.refr) {
                    Some(path)
                        if path == "input"
                            || path == "data"
                            || path.starts_with("input.")
                            || path.starts_with("data.") => {}
                    _ => return Err(error(&with.span, "`with` may replace parts of input and data only")),
                }
                self.expr(&with.r#as)?;
            }
        }
        Ok(())
    }

    fn exprs<'e>(&mut self, exprs: impl IntoIterator<Item = &'e Ref<Expr>>) -> Result<(), RegoError> {
        exprs.into_iter().try_for_each(|expr| self.expr(expr))
    }

    /// No wildcard: what regorus adds must be placed here.
    fn expr(&mut self, expr: &Ref<Expr>) -> Result<(), RegoError> {
        match expr.as_ref() {
            Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Number { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. } => Ok(()),
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => {
                if let Some(root) = root_of(expr) {
                    self.using(&root);
                }
                self.indices(expr)
            }
            Expr::Array { items, .. } | Expr::Set { items, .. } => self.exprs(items),
            Expr::Object { fields, .. } => fields.iter().try_for_each(|(_, key, value)| self.exprs([key, value])),
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.expr(term)?;
                self.query(query)
            }
            Expr::ObjectCompr { key, value, query, .. } => {
                self.exprs([key, value])?;
                self.query(query)
            }
            Expr::Call { span, fcn, params, .. } => {
                self.call(span, fcn, params)?;
                self.exprs(params)
            }
            Expr::UnaryExpr { expr, .. } => self.expr(expr),
            Expr::BinExpr { lhs, rhs, .. }
            | Expr::BoolExpr { lhs, rhs, .. }
            | Expr::ArithExpr { lhs, rhs, .. }
            | Expr::AssignExpr { lhs, rhs, .. } => self.exprs([lhs, rhs]),
            Expr::Membership {
                key, value, collection, ..
            } => {
                self.exprs(key)?;
                self.exprs([value, collection])
            }
        }
    }

    /// What stands in the brackets of a reference, and what it begins with if that is no name.
    fn indices(&mut self, expr: &Ref<Expr>) -> Result<(), RegoError> {
        match expr.as_ref() {
            Expr::Var { .. } => Ok(()),
            Expr::RefDot { refr, .. } => self.indices(refr),
            Expr::RefBrack { refr, index, .. } => {
                self.indices(refr)?;
                self.expr(index)
            }
            _ => self.expr(expr),
        }
    }

    /// Every rule that the path may reach: itself, one that it goes into, or all below it.
    fn using(&mut self, path: &str) {
        for full in self.names.resolve(path, self.package, self.imports) {
            let below = format!("{full}.");
            let rules = self.names.rules.difference(&self.names.functions);
            let reached = rules.filter(|rule| {
                **rule == full
                    || rule.starts_with(&below)
                    || full
                        .strip_prefix(rule.as_str())
                        .is_some_and(|rest| rest.starts_with('.'))
            });
            self.uses.extend(reached.cloned());
        }
    }

    fn call(&mut self, span: &Span, fcn: &Ref<Expr>, params: &[Ref<Expr>]) -> Result<(), RegoError> {
        let Some(name) = path_of(fcn) else {
            return Err(error(span, "the name of a function is computed"));
        };
        let own = self.names.resolve(&name, self.package, self.imports);
        if let Some(full) = own.iter().find(|full| self.names.functions.contains(*full)) {
            self.uses.insert(full.clone());
            return Ok(());
        }
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            return Err(error(span, &format!("`{name}` is not allowed: {why}")));
        }
        if let Some(arity) = builtins::arity(&name) {
            return match params.len() {
                given if given == usize::from(arity) => Ok(()),
                given => Err(error(span, &format!("`{name}` takes {arity} arguments, not {given}"))),
            };
        }
        match name.as_str() {
            "print" => Ok(()),
            "sprintf" => check_format(span, params),
            known if BUILTINS.contains_key(known) => Ok(()),
            unknown => {
                let mut known: Vec<&str> = self.names.functions.iter().map(String::as_str).collect();
                builtins::names().for_each(|name| known.push(name));
                BUILTINS.keys().for_each(|name| known.push(name));
                let nearest = known
                    .into_iter()
                    .filter(|name| !REFUSED.iter().any(|(refused, _)| refused == name))
                    .map(|name| (strsim::damerau_levenshtein(name, unknown), name))
                    .min()
                    .filter(|(distance, _)| *distance <= 1 + unknown.len() / 4)
                    .map_or_else(String::new, |(_, name)| format!("; did you mean `{name}`?"));
                Err(error(span, &format!("there is no function `{unknown}`{nearest}")))
            }
        }
    }
}

/// A width makes text as long as it says, so it stands in the policy and is small.
fn check_format(span: &Span, params: &[Ref<Expr>]) -> Result<(), RegoError> {
    let format = match params.first().map(AsRef::as_ref) {
        Some(Expr::String { value, .. } | Expr::RawString { value, .. }) => value.as_string().ok(),
        _ => None,
    };
    let Some(format) = format else {
        return Err(error(span, "the format of `sprintf` must be a literal string"));
    };
    let verbs = format.split('%').skip(1);
    let wide = verbs.map(|verb| {
        verb.chars()
            .take_while(|c| !c.is_ascii_alphabetic())
            .collect::<String>()
    });
    for flags in wide {
        let numbers = flags.split(|c: char| !c.is_ascii_digit());
        if flags.contains('*') || numbers.into_iter().any(|number| number.len() > 3) {
            return Err(error(span, "a width of `sprintf` has at most three digits"));
        }
    }
    Ok(())
}

/// How deep rules and functions stand in one another.
struct Depths<'g> {
    graph: &'g BTreeMap<String, (Span, BTreeSet<String>)>,
    functions: &'g BTreeSet<String>,
    known: BTreeMap<&'g str, usize>,
    open: Vec<&'g str>,
}

impl<'g> Depths<'g> {
    fn check(mut self) -> Result<(), RegoError> {
        self.graph.keys().try_for_each(|name| self.depth_of(name).map(drop))
    }

    fn depth_of(&mut self, name: &'g str) -> Result<usize, RegoError> {
        if let Some(depth) = self.known.get(name) {
            return Ok(*depth);
        }
        let Some((span, uses)) = self.graph.get(name) else {
            return Ok(0);
        };
        if self.open.len() >= MAX_DEPTH {
            return Err(error(
                span,
                &format!("rules that use one another more than {MAX_DEPTH} deep"),
            ));
        }
        self.open.push(name);
        let mut depth = 0;
        for used in uses {
            if let Some(at) = self.open.iter().position(|open| open == used) {
                // Rules that use one another in a circle are noticed while they are evaluated; functions are not.
                if self.open.iter().skip(at).all(|open| self.functions.contains(*open)) {
                    return Err(error(
                        span,
                        &format!("`{}` calls itself", used.trim_start_matches("data.")),
                    ));
                }
                continue;
            }
            depth = depth.max(self.depth_of(used)?);
        }
        self.open.pop();
        depth += 1;
        if depth > MAX_DEPTH {
            return Err(error(
                span,
                &format!("rules that use one another more than {MAX_DEPTH} deep"),
            ));
        }
        self.known.insert(name, depth);
        Ok(depth)
    }
}
