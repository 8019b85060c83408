package archtest

import (
	"go/ast"
	"go/types"
	"regexp"
	"slices"
	"strings"
)

const (
	maxFileLines     = 600
	maxTestFileLines = 900
	maxFuncLines     = 80

	minDocWords     = 20
	minMainDocWords = 6
)

var shapeRules = []Rule{
	{
		Name:  "package-doc",
		Says:  "Each package says, in one comment of its own, what comes in, what goes out and what it must not do.",
		Check: packageDocs,
	},
	{
		Name:  "names",
		Says:  "Packages are nouns of the domain, never util, common, helper, manager or base.",
		Check: packageNames,
	},
	{
		Name:  "sizes",
		Says:  "Files stay within 600 lines (tests 900), functions within 80.",
		Check: sizes,
	},
	{
		Name:  "no-init",
		Says:  "No init functions: nothing registers itself.",
		Check: noInit,
	},
	{
		Name:  "goroutines",
		Says:  "Goroutines begin in the daemon, so that each has a name and an owner.",
		Check: ownedGoroutines,
	},
	{
		Name:  "bool-parameters",
		Says:  "Exported functions take no bool parameters: a call must say what it asks for.",
		Check: noBoolParameters,
	},
	{
		Name:  "no-context-field",
		Says:  "A context is an argument, never a field.",
		Check: noContextField,
	},
	{
		Name:  "no-sleep",
		Says:  "Sleeping is no synchronisation.",
		Check: noSleep,
	},
	{
		Name:  "no-skip",
		Says:  "A test runs or fails: a missing ability of the machine is a failure.",
		Check: noSkip,
	},
	{
		Name:  "no-panic",
		Says:  "Errors are returned; panic is for what a Must function promises.",
		Check: noPanic,
	},
}

// packageDoc returns the package comment of a package, all of them joined where there are several.
func packageDoc(p *Package) string {
	var docs []string
	for _, f := range p.Files {
		if f.Syntax.Doc != nil && !f.Generated {
			docs = append(docs, f.Syntax.Doc.Text())
		}
	}
	return strings.Join(docs, "\n")
}

var sentenceEnd = regexp.MustCompile(`[.:;!?)](\s|$)`)

func packageDocs(t *Tree, _ *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		if !slices.ContainsFunc(p.Files, func(f *File) bool { return !f.Generated }) {
			continue
		}
		c.Subjects++
		comments := 0
		for _, f := range p.Files {
			if f.Syntax.Doc != nil && !f.Generated {
				comments++
			}
		}
		doc := packageDoc(p)
		words := len(strings.Fields(doc))
		switch {
		case comments == 0:
			c.in(p.Dir, "has no package comment: say what comes in, what goes out, what it must not do")
		case comments > 1:
			c.in(p.Dir, "has %d package comments: keep one", comments)
		case p.Name == "main" && words < minMainDocWords:
			c.in(p.Dir, "its command comment has %d words: say what the command does (%d or more)", words, minMainDocWords)
		case p.Name != "main" && !strings.HasPrefix(doc, "Package "+p.Name+" "):
			c.in(p.Dir, "its package comment does not begin with %q", "Package "+p.Name)
		case p.Name != "main" && (words < minDocWords || len(sentenceEnd.FindAllString(doc, -1)) < 2):
			c.in(p.Dir, "its package comment is a fragment of %d words: say what comes in, what goes out, what it must not do", words)
		}
	}
	return c.Result
}

var emptyNames = []string{
	"base", "common", "commons", "core", "helper", "helpers", "lib", "manager", "managers", "misc", "shared", "util", "utils",
}

func packageNames(t *Tree, _ *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		c.Subjects++
		for _, part := range append(strings.Split(p.Dir, "/"), p.Name) {
			if slices.Contains(emptyNames, strings.ToLower(part)) {
				c.in(p.Dir, "%q says nothing about what is inside: name the thing of the domain", part)
				break
			}
		}
	}
	return c.Result
}

func sizes(t *Tree, _ *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		for _, f := range p.Files {
			if f.Generated {
				continue
			}
			c.Subjects++
			limit := maxFileLines
			if f.Test {
				limit = maxTestFileLines
			}
			if f.Lines > limit {
				c.in(f.Path, "%d lines: split it by subject (%d at most)", f.Lines, limit)
			}
			if f.Test {
				continue
			}
			for _, decl := range f.Syntax.Decls {
				fn, ok := decl.(*ast.FuncDecl)
				if !ok {
					continue
				}
				if lines := f.EndLine(fn) - f.Line(fn) + 1; lines > maxFuncLines {
					c.at(f, f.Line(fn), funcName(fn), "%s has %d lines: give its steps names (%d at most)", funcName(fn), lines, maxFuncLines)
				}
			}
		}
	}
	return c.Result
}

// functions calls visit for every function that somebody wrote, tests left out, and counts them as subjects.
func functions(t *Tree, c *collector, visit func(f *File, fn *ast.FuncDecl)) {
	for _, p := range t.Packages {
		for _, f := range p.Written() {
			for _, decl := range f.Syntax.Decls {
				if fn, ok := decl.(*ast.FuncDecl); ok {
					c.Subjects++
					visit(f, fn)
				}
			}
		}
	}
}

func noInit(t *Tree, _ *Layout) Result {
	var c collector
	functions(t, &c, func(f *File, fn *ast.FuncDecl) {
		if fn.Name.Name == "init" && fn.Recv == nil {
			c.at(f, f.Line(fn), "init", "func init runs behind everybody's back: call it from main or app")
		}
	})
	return c.Result
}

func ownedGoroutines(t *Tree, _ *Layout) Result {
	var c collector
	functions(t, &c, func(f *File, fn *ast.FuncDecl) {
		decl := funcName(fn)
		awaited := awaitedGroups(fn)
		ast.Inspect(fn, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				c.at(f, f.Line(n), decl, "go statement: use the daemon's Go, which names it and waits for it")
			case *ast.CallExpr:
				// One argument: errgroup.Group.Go and sync.WaitGroup.Go. The daemon's takes a name, too.
				group, ok := methodOf(n, "Go")
				if ok && len(n.Args) == 1 && !awaited[group] {
					c.at(f, f.Line(n), decl, "%s.Go starts a goroutine that this function does not wait for: use the daemon's Go", group)
				}
			}
			return true
		})
	})
	for _, p := range t.Packages {
		for _, f := range p.Written() {
			forbidUses(&c, f, "time", []string{"AfterFunc"}, "starts a goroutine that nobody owns")
		}
	}
	return c.Result
}

// awaitedGroups are the groups for which a function itself waits, so that what they start ends before it returns, and
// those that its caller gave it for that purpose.
func awaitedGroups(fn *ast.FuncDecl) map[string]bool {
	awaited := map[string]bool{}
	for _, param := range fn.Type.Params.List {
		if kind := types.ExprString(param.Type); kind == "*sync.WaitGroup" || kind == "*errgroup.Group" {
			for _, name := range param.Names {
				awaited[name.Name] = true
			}
		}
	}
	ast.Inspect(fn, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if group, ok := methodOf(call, "Wait"); ok {
				awaited[group] = true
			}
		}
		return true
	})
	return awaited
}

// methodOf returns the text of x in a call x.name(…).
func methodOf(call *ast.CallExpr, name string) (string, bool) {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return "", false
	}
	return types.ExprString(sel.X), true
}

func noBoolParameters(t *Tree, _ *Layout) Result {
	var c collector
	functions(t, &c, func(f *File, fn *ast.FuncDecl) {
		receiver, method, _ := strings.Cut(funcName(fn), ".")
		if !ast.IsExported(receiver) || (method != "" && !ast.IsExported(method)) {
			return
		}
		for _, param := range fn.Type.Params.List {
			kind := param.Type
			if variadic, ok := kind.(*ast.Ellipsis); ok {
				kind = variadic.Elt
			}
			if ident, ok := kind.(*ast.Ident); ok && ident.Name == "bool" {
				c.at(f, f.Line(param), funcName(fn), "%s takes a bool: two functions, or a named type, say what is asked for", funcName(fn))
			}
		}
	})
	return c.Result
}

func noContextField(t *Tree, _ *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		for _, f := range p.Written() {
			local := f.importedAs("context")
			ast.Inspect(f.Syntax, func(n ast.Node) bool {
				structure, ok := n.(*ast.StructType)
				if !ok {
					return true
				}
				c.Subjects++
				for _, field := range structure.Fields.List {
					sel, ok := field.Type.(*ast.SelectorExpr)
					if !ok || local == "" {
						continue
					}
					if x, ok := sel.X.(*ast.Ident); ok && x.Name == local && sel.Sel.Name == "Context" {
						c.at(f, f.Line(field), f.enclosing(field), "a struct keeps a context: pass it to the call that it bounds")
					}
				}
				return true
			})
		}
	}
	return c.Result
}

func noSleep(t *Tree, _ *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		for _, f := range p.Files {
			if f.Generated {
				continue
			}
			c.Subjects++
			forbidUses(&c, f, "time", []string{"Sleep"}, "wait for the event itself: a channel, a watch, a deadline")
		}
	}
	return c.Result
}

func noSkip(t *Tree, _ *Layout) Result {
	var c collector
	for _, p := range t.Packages {
		for _, f := range p.Files {
			if !f.Test {
				continue
			}
			c.Subjects++
			ast.Inspect(f.Syntax, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
					c.at(f, f.Line(call), f.enclosing(call), "%s: fail and say what is missing", sel.Sel.Name)
				}
				return true
			})
			forbidUses(&c, f, "testing", []string{"Short"}, "every test runs every time")
		}
	}
	return c.Result
}

func noPanic(t *Tree, _ *Layout) Result {
	var c collector
	functions(t, &c, func(f *File, fn *ast.FuncDecl) {
		if strings.HasPrefix(strings.ToLower(fn.Name.Name), "must") {
			return
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if ident, ok := call.Fun.(*ast.Ident); ok && ident.Name == "panic" && ident.Obj == nil {
				c.at(f, f.Line(call), funcName(fn), "panic: return an error, or name the function Must…")
			}
			return true
		})
	})
	return c.Result
}
