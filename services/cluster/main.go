// Command cluster owns Namespaces, Nodes and Pods, and signs certificates.
package main

import (
	"os"

	"podwire.dev/services/cluster/app"
)

func main() { os.Exit(app.Main(os.Args[1:])) }
