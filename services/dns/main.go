// Command dns answers the names of the cluster, and forwards the others.
package main

import (
	"os"

	"podwire.dev/services/dns/app"
)

func main() { os.Exit(app.Main(os.Args[1:])) }
