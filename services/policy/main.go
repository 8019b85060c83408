// Command policy compiles NetworkPolicies into the rule tables of every node.
package main

import (
	"os"

	"podwire.dev/services/policy/app"
)

func main() { os.Exit(app.Main(os.Args[1:])) }
