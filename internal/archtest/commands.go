package archtest

import (
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strconv"
)

var commandRules = []Rule{
	{
		Name:  "commands",
		Says:  "A command that a test runs is part of every Debian, or scripts/deps.sh installs it.",
		Check: commandsInstalled,
	},
}

// everywhere are commands of Debian's essential packages, and the toolchain's own.
var everywhere = []string{
	"awk", "bash", "cat", "cp", "dd", "echo", "env", "false", "go", "grep", "head", "id", "kill", "ls", "mkdir", "mount", "mv",
	"nsenter", "printf", "readlink", "rm", "sed", "seq", "setsid", "sh", "sleep", "sort", "stat", "tail", "tee", "test", "true",
	"umount", "uname", "unshare", "wc",
}

// installed matches "command:package" in scripts/deps.sh.
var installed = regexp.MustCompile(`\b([a-z][a-z0-9-]*):[a-z][a-z0-9-]+\b`)

func commandsInstalled(t *Tree, _ *Layout) Result {
	var c collector
	known := slices.Clone(everywhere)
	for _, match := range installed.FindAllStringSubmatch(t.Text("scripts/deps.sh"), -1) {
		known = append(known, match[1])
	}
	for _, p := range t.Packages {
		for _, f := range p.Files {
			local := f.importedAs("os/exec")
			if local == "" || f.Generated {
				continue
			}
			ast.Inspect(f.Syntax, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				name := -1
				switch {
				case calls(call, local, "Command"), calls(call, local, "LookPath"):
					name = 0
				case calls(call, local, "CommandContext"):
					name = 1
				}
				if name < 0 || name >= len(call.Args) {
					return true
				}
				c.Subjects++
				lit, ok := call.Args[name].(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					return true
				}
				command, err := strconv.Unquote(lit.Value)
				if err == nil && command != "/proc/self/exe" && !slices.Contains(known, command) {
					c.at(f, f.Line(call), f.enclosing(call), "runs %q, which a fresh machine may lack: name its package in scripts/deps.sh", command)
				}
				return true
			})
		}
	}
	return c.Result
}

// calls reports whether a call is local.name(…), local being the name of an imported package.
func calls(call *ast.CallExpr, local, name string) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == local && x.Obj == nil
}
