package archtest

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Tree is a repository as the rules see it: Go packages as syntax, everything else as text.
type Tree struct {
	// Packages in order of their directory.
	Packages []*Package
	// Texts are all files that are not binary, Go files among them, in order of their path.
	Texts []*Text

	fsys fs.FS
}

// Package is one directory with Go files, its tests included.
type Package struct {
	// Dir is relative to the root of the repository, "." for the root itself.
	Dir string
	// Name is the name in the package clauses, without the _test of external tests.
	Name  string
	Files []*File
	// Support is set where code outside _test.go files imports testing: a conformance suite, test namespaces. All its
	// files count as tests, and only tests may import it.
	Support bool
}

// File is one parsed Go file.
type File struct {
	Path  string
	Lines int
	// Test is set for _test.go files and for those of a support package.
	Test      bool
	Generated bool
	Syntax    *ast.File
	Package   *Package

	fset *token.FileSet
}

// Text is one file as text.
type Text struct {
	Path    string
	Content string
}

// Import is one import of a file.
type Import struct {
	Path string
	Line int
}

// ignoredDirs hold what is not ours or not committed.
var ignoredDirs = []string{".git", ".cache", ".idea", ".vscode", "bin", "node_modules"}

// LoadTree reads every file below the root of fsys. Go files in testdata directories are texts only, and so are
// those of nested modules. The first file that does not parse is an error.
func LoadTree(fsys fs.FS) (*Tree, error) {
	t := &Tree{fsys: fsys}
	packages := map[string]*Package{}
	var nested []string
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if slices.Contains(ignoredDirs, entry.Name()) {
				return fs.SkipDir
			}
			if _, err := fs.Stat(fsys, path.Join(name, "go.mod")); err == nil && name != "." {
				nested = append(nested, name)
			}
			return nil
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		content, err := fs.ReadFile(fsys, name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // somebody's temporary file, gone since its directory was read
		}
		if err != nil {
			return err
		}
		if bytes.IndexByte(content, 0) >= 0 {
			return nil
		}
		t.Texts = append(t.Texts, &Text{Path: name, Content: string(content)})
		if path.Ext(name) != ".go" || inTestdata(name) || below(name, nested...) {
			return nil
		}
		return addFile(packages, name, content)
	})
	if err != nil {
		return nil, fmt.Errorf("archtest: read the tree: %w", err)
	}
	for _, p := range packages {
		p.markSupport()
		t.Packages = append(t.Packages, p)
	}
	sort.Slice(t.Packages, func(i, j int) bool { return t.Packages[i].Dir < t.Packages[j].Dir })
	return t, nil
}

func addFile(packages map[string]*Package, name string, content []byte) error {
	fset := token.NewFileSet()
	syntax, err := parser.ParseFile(fset, name, content, parser.ParseComments)
	if err != nil {
		return err
	}
	dir := path.Dir(name)
	p := packages[dir]
	if p == nil {
		p = &Package{Dir: dir}
		packages[dir] = p
	}
	f := &File{
		Path:      name,
		Lines:     bytes.Count(content, []byte("\n")),
		Test:      strings.HasSuffix(name, "_test.go"),
		Generated: ast.IsGenerated(syntax),
		Syntax:    syntax,
		Package:   p,
		fset:      fset,
	}
	p.Files = append(p.Files, f)
	if !f.Test || p.Name == "" {
		p.Name = strings.TrimSuffix(syntax.Name.Name, "_test")
	}
	return nil
}

func (p *Package) markSupport() {
	for _, f := range p.Files {
		if !f.Test && f.importedAs("testing") != "" {
			p.Support = true
		}
	}
	for _, f := range p.Files {
		f.Test = f.Test || p.Support
	}
}

// Exists reports whether the repository has this file or directory.
func (t *Tree) Exists(name string) bool {
	_, err := fs.Stat(t.fsys, name)
	return err == nil
}

// Glob returns the files and directories that match a path.Match pattern.
func (t *Tree) Glob(pattern string) []string {
	found, err := fs.Glob(t.fsys, pattern)
	if err != nil {
		return nil
	}
	return found
}

// Text returns the content of a file, or "" where there is none.
func (t *Tree) Text(name string) string {
	for _, text := range t.Texts {
		if text.Path == name {
			return text.Content
		}
	}
	return ""
}

// Written returns the files that somebody wrote: neither generated nor tests.
func (p *Package) Written() []*File {
	return slices.DeleteFunc(slices.Clone(p.Files), func(f *File) bool { return f.Test || f.Generated })
}

// Imports returns the imports of a file in order.
func (f *File) Imports() []Import {
	var out []Import
	for _, spec := range f.Syntax.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		out = append(out, Import{Path: name, Line: f.Line(spec)})
	}
	return out
}

// Line returns the line at which a node begins.
func (f *File) Line(n ast.Node) int { return f.fset.Position(n.Pos()).Line }

// EndLine returns the line at which a node ends.
func (f *File) EndLine(n ast.Node) int { return f.fset.Position(n.End()).Line }

// importedAs returns the name under which a file uses a package, or "" where it does not import it.
func (f *File) importedAs(importPath string) string {
	for _, spec := range f.Syntax.Imports {
		if spec.Path.Value != strconv.Quote(importPath) {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		base := path.Base(importPath)
		if strings.HasPrefix(base, "v") && strings.Trim(base[1:], "0123456789") == "" {
			base = path.Base(path.Dir(importPath))
		}
		return base
	}
	return ""
}

// uses calls visit for every use of one of the names of a package: uses("time", …) sees time.Now, called or not.
// A local variable of the package's name is not mistaken for it.
func (f *File) uses(importPath string, visit func(sel *ast.SelectorExpr)) {
	local := f.importedAs(importPath)
	if local == "" {
		return
	}
	ast.Inspect(f.Syntax, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == local && x.Obj == nil {
				visit(sel)
			}
		}
		return true
	})
}

// enclosing names the top-level function around a node: "Run", "(*Hub).Run" as "Hub.Run", or "" outside functions.
func (f *File) enclosing(n ast.Node) string {
	for _, decl := range f.Syntax.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && fn.Pos() <= n.Pos() && n.End() <= fn.End() {
			return funcName(fn)
		}
	}
	return ""
}

func funcName(fn *ast.FuncDecl) string {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return fn.Name.Name
	}
	receiver := fn.Recv.List[0].Type
	if star, ok := receiver.(*ast.StarExpr); ok {
		receiver = star.X
	}
	switch generic := receiver.(type) {
	case *ast.IndexExpr:
		receiver = generic.X
	case *ast.IndexListExpr:
		receiver = generic.X
	}
	if ident, ok := receiver.(*ast.Ident); ok {
		return ident.Name + "." + fn.Name.Name
	}
	return fn.Name.Name
}

func inTestdata(name string) bool {
	return slices.Contains(strings.Split(name, "/"), "testdata")
}

// below reports whether a path is one of the rooms or lies inside one. A room's path may hold * for one element.
func below(name string, rooms ...string) bool {
	parts := strings.Split(name, "/")
	for _, room := range rooms {
		depth := strings.Count(room, "/") + 1
		if depth > len(parts) {
			continue
		}
		if ok, err := path.Match(room, strings.Join(parts[:depth], "/")); err == nil && ok {
			return true
		}
	}
	return false
}
