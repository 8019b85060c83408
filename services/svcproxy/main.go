// Command svcproxy turns Services and Pods into the endpoints and the service table that every node holds.
package main

import (
	"os"

	"podwire.dev/services/svcproxy/app"
)

func main() { os.Exit(app.Main(os.Args[1:])) }
