// Command nodeagent holds the kernel of one node.
package main

import (
	"os"

	"podwire.dev/services/nodeagent/app"
)

func main() { os.Exit(app.Main(os.Args[1:])) }
