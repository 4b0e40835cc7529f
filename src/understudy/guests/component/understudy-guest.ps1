# Looks after this Windows guest while a point of its disks is taken. Copied in by Understudy and removed again.
#
#   version | discover | begin ID DEADLINE_S [--no-applications] | end ID | commit ID
#   run ID TIMEOUT_S PATH | cleanup [PREFIX]
#
# Answers are tab-separated lines on standard output; what went wrong is told on standard error, with exit status 1.
# Nothing is frozen here: between `begin` and `end` the QEMU guest agent's own freeze asks VSS, which quiesces its
# writers and ends a freeze by itself after 10 s. So there is no watchdog. This file lies in a directory that only
# SYSTEM and administrators can enter; all state is there, too. ASCII only: PowerShell 5.1 reads it as ANSI.
#Requires -Version 5.1
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
$Base = $PSScriptRoot
# The writers as `begin` saw them; `end` compares.
$Before = [IO.Path]::ChangeExtension($PSCommandPath, '.writers')
$System = Join-Path $env:SystemRoot 'System32'
$PowerShell = Join-Path $System 'WindowsPowerShell\v1.0\powershell.exe'
$Provider = 'HKLM:\SYSTEM\CurrentControlSet\Services\QEMU Guest Agent VSS Provider'
$Output = [Console]::OpenStandardOutput()
$ShownBytes = 4096
$MostBytes = 262144
$WorstState = 5

# --- Words and processes ----------------------------------------------------------------------------------------------

# Not by the console, which has a code page of its own.
function Write-Answer {
    param([string[]] $Fields)

    $bytes = [Text.Encoding]::UTF8.GetBytes(($Fields -join "`t") + "`n")
    $Output.Write($bytes, 0, $bytes.Length)
}

# One field of an answer: no tabs, no line ends, bounded.
function Format-Field {
    param([string] $Text)

    $clean = ($Text -replace '[^\x20-\x7e]', '?').Trim()
    return $clean.Substring(0, [Math]::Min(300, $clean.Length))
}

function Get-State {
    param([string] $Id)

    if ($Id -notmatch '^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$') { throw "usage: '$Id' is not an ID" }
    return Join-Path $Base $Id
}

# End a process and all that it has started.
function Stop-Tree {
    param([int] $Number)

    & "$System\cmd.exe" /d /c "$System\taskkill.exe /T /F /PID $Number >nul 2>&1"
}

# Run a command line; its status, 124 if it was killed, and the last bytes of its output. For the caller's death a file
# REMEMBER holds its number and the time when it started, for the number alone may be another process's later.
function Invoke-Bounded {
    param([string] $Command, [int] $LimitS, [int] $KeptBytes, [string] $Remember)

    $start = New-Object Diagnostics.ProcessStartInfo "$System\cmd.exe", "/d /s /c `"$Command 2>&1`""
    $start.UseShellExecute = $false
    $start.CreateNoWindow = $true
    $start.RedirectStandardInput = $true
    $start.RedirectStandardOutput = $true
    $clock = [Diagnostics.Stopwatch]::StartNew()
    $process = [Diagnostics.Process]::Start($start)
    if ($Remember) {
        Set-Content -LiteralPath $Remember -Value "$($process.Id) $($process.StartTime.ToFileTimeUtc())"
    }
    $process.StandardInput.Close()
    $stream = $process.StandardOutput.BaseStream
    $kept = New-Object Collections.Generic.List[byte]
    $buffer = New-Object byte[] 4096
    $read = $stream.ReadAsync($buffer, 0, $buffer.Length)
    while ($clock.Elapsed.TotalSeconds -lt $LimitS) {
        # What it has left running may hold its output open.
        if (-not $read.Wait(50)) { if ($process.HasExited) { break } else { continue } }
        if ($read.Result -eq 0) { break }
        $kept.AddRange([byte[]] @($buffer[0..($read.Result - 1)]))
        if ($kept.Count -gt $KeptBytes) { $kept.RemoveRange(0, $kept.Count - $KeptBytes) }
        $read = $stream.ReadAsync($buffer, 0, $buffer.Length)
    }
    $status = 124
    $leftMs = [Math]::Max(0, $LimitS * 1000 - $clock.ElapsedMilliseconds)
    if ($process.WaitForExit([int] $leftMs)) { $status = $process.ExitCode } else { Stop-Tree $process.Id }
    # An exception of Windows is a negative number, which an answer has no word for.
    if ($status -lt 0 -or $status -gt 65535) { $status = 255 }
    return @{ Status = $status; Output = $kept.ToArray() }
}

# --- VSS --------------------------------------------------------------------------------------------------------------

# The VSS writers: name -> number of the state, last error, and both as shown. The words of vssadmin are in the guest's
# language, so its marks are read: a name in quotes at a line's end, a number in brackets, the error in the next line.
function Get-Writers {
    param([int] $LimitS)

    $ran = Invoke-Bounded "`"$System\vssadmin.exe`" list writers" $LimitS $MostBytes ''
    if ($ran.Status -ne 0) { throw "vssadmin list writers: status $($ran.Status)" }
    $found = @{}
    $name = ''
    $state = -1
    foreach ($line in [Text.Encoding]::ASCII.GetString($ran.Output) -split "`r?`n") {
        if ($line -match "['`"]([^'`"]+)['`"]\s*$") {
            $name = Format-Field $Matches[1]
            $state = -1
        } elseif ($name -and $state -lt 0 -and $line -match '\[(\d{1,3})\]\s*(.*)$') {
            $state = [int] $Matches[1]
            $words = $Matches[2]
        } elseif ($name -and $state -ge 0 -and $line.Trim()) {
            # Of several with one name the worst counts.
            if (-not $found.ContainsKey($name) -or $found[$name].State -lt $state) {
                $problem = Format-Field ($line -replace '^[^:]*:', '')
                $shown = Format-Field "[$state] $words, $problem"
                $found[$name] = @{ State = $state; Problem = $problem; Shown = $shown }
            }
            $name = ''
        }
    }
    return $found
}

function Save-Writers {
    param([int] $LimitS)

    $found = Get-Writers $LimitS
    $lines = @(foreach ($name in ($found.Keys | Sort-Object)) {
        $writer = $found[$name]
        "$name`t$($writer.State)`t$($writer.Problem)`t$($writer.Shown)"
    })
    Set-Content -LiteralPath $Before -Value $lines -Encoding Ascii
}

# The writers as they were before: Name, State, Problem and what is Shown of each.
function Read-Writers {
    foreach ($line in @(Get-Content -LiteralPath $Before)) {
        if (-not $line) { continue }
        $name, $number, $problem, $shown = $line -split "`t"
        @{ Name = $name; State = [int] $number; Problem = $problem; Shown = $shown }
    }
}

# What came of a writer: VSS says 1 for stable, 2 to 5 while it waits, 0 or more than 5 if it has failed. A last error
# that was not there before the freeze counts, too, whatever it is called in the guest's language.
function Write-Writer {
    param($Old, $New)

    if ($null -eq $New) {
        Write-Answer 'app', 'vss', $Old.Name, 'failed', 'the writer is gone'
        return
    }
    $result = 'thawed'
    $works = $New.State -ge 1 -and $New.State -le $WorstState
    $worked = $Old.State -ge 1 -and $Old.State -le $WorstState
    if (-not $works -or ($worked -and $New.Problem -ne $Old.Problem)) { $result = 'failed' }
    Write-Answer 'app', 'vss', $Old.Name, $result, $New.Shown
}

# VssOption 5 is a copy. Without it the agent asks for a full backup, which breaks the chain of the guest's own backups.
# What an administrator has set stays; ours is there only until `end`.
function Set-CopyBackup {
    param([string] $State)

    if (-not (Test-Path $Provider) -or (Get-Item $Provider).GetValueNames() -contains 'VssOption') { return }
    Set-Content -LiteralPath (Join-Path $State 'vss-option') -Value ''
    New-ItemProperty -Path $Provider -Name 'VssOption' -PropertyType DWord -Value 5 | Out-Null
}

function Clear-CopyBackup {
    param([string] $State)

    if ((Test-Path -LiteralPath (Join-Path $State 'vss-option')) -and (Test-Path $Provider)) {
        Remove-ItemProperty -Path $Provider -Name 'VssOption' -ErrorAction SilentlyContinue
    }
}

# --- Verbs ------------------------------------------------------------------------------------------------------------

function Invoke-Discover {
    Save-Writers 15
    foreach ($writer in @(Read-Writers)) { Write-Answer 'app', 'vss', $writer.Name, $writer.Shown }
    Write-Answer 'discovered'
}

function Invoke-Begin {
    param([string] $Id, [string[]] $Words)

    $state = Get-State $Id
    if ($Words -contains '--fs') { throw 'file systems of Windows are frozen by the QEMU guest agent only' }
    if (Test-Path -LiteralPath $state) { throw "session $Id has begun already" }
    New-Item -ItemType Directory -Path $state | Out-Null
    Set-CopyBackup $state
    if ($Words -contains '--no-applications') {
        Set-Content -LiteralPath $Before -Value @()
    } else {
        Save-Writers 8
    }
    foreach ($writer in @(Read-Writers)) { Write-Answer 'app', 'vss', $writer.Name, 'quiesced', $writer.Shown, '0' }
    Write-Answer 'ready'
}

function Invoke-End {
    param([string] $Id)

    $state = Get-State $Id
    if (-not (Test-Path -LiteralPath $state)) {
        # Nothing here knows the session any more, so nothing says that it was quiesced until now.
        Write-Answer 'expired', '0'
    } else {
        Clear-CopyBackup $state
        Remove-Item -Recurse -Force -LiteralPath $state
        $writers = @(Read-Writers)
        if ($writers.Count -gt 0) { $now = Get-Writers 8 }
        foreach ($writer in $writers) { Write-Writer $writer $now[$writer.Name] }
    }
    Write-Answer 'ended'
}

function Invoke-Script {
    param([string] $Id, [int] $LimitS, [string] $Path)

    $command = switch -Regex ($Path) {
        '\.ps1$' { "`"$PowerShell`" -NoProfile -NonInteractive -ExecutionPolicy Bypass -File `"$Path`"" }
        '\.(cmd|bat)$' { "`"$Path`"" }
        default { throw 'a script for a Windows guest ends with .ps1, .cmd or .bat' }
    }
    $state = Get-State "$Id.run"
    New-Item -ItemType Directory -Force -Path $state | Out-Null
    $ran = Invoke-Bounded $command $LimitS $ShownBytes (Join-Path $state 'running')
    Write-Answer 'exit', $ran.Status
    Write-Answer 'output', ([Convert]::ToBase64String($ran.Output))
    Remove-Item -Recurse -Force -LiteralPath $state
}

# End what sessions have left whose names begin with the prefix: scripts, and their choice of the kind of backup.
function Invoke-Cleanup {
    param([string] $Prefix)

    foreach ($state in @(Get-ChildItem -Force -Directory -LiteralPath $Base -Filter "$Prefix*")) {
        $running = Join-Path $state.FullName 'running'
        if (Test-Path -LiteralPath $running) {
            $number, $since = (Get-Content -LiteralPath $running) -split ' '
            $process = Get-Process -Id $number -ErrorAction SilentlyContinue
            if ($process -and $process.StartTime.ToFileTimeUtc() -eq $since) { Stop-Tree $number }
        }
        Clear-CopyBackup $state.FullName
        Remove-Item -Recurse -Force -LiteralPath $state.FullName
        Write-Answer 'removed', (Format-Field $state.Name)
    }
    Write-Answer 'clean'
}

$verb, $rest = $args
$rest = @($rest)
try {
    switch ($verb) {
        'version' { Write-Answer 'understudy-guest', '1' }
        'discover' { Invoke-Discover }
        'begin' { Invoke-Begin $rest[0] $rest }
        'end' { Invoke-End $rest[0] }
        'commit' { Write-Answer 'committed' }
        'run' { Invoke-Script $rest[0] ([int] $rest[1]) $rest[2] }
        'cleanup' { Invoke-Cleanup $rest[0] }
        default { throw 'usage: version | discover | begin | end | commit | run | cleanup' }
    }
} catch {
    [Console]::Error.WriteLine($_.Exception.Message)
    exit 1
}
exit 0
