// Command ipam decides who holds which address.
package main

import (
	"os"

	"podwire.dev/services/ipam/app"
)

func main() { os.Exit(app.Main(os.Args[1:])) }
