# Understudy's program for Windows guests. It was never run on Windows: no machine of the project has one.
#
#   version | discover | begin ID DEADLINE_S [--fs] [--no-applications] | end ID | commit ID
#   run ID TIMEOUT_S PATH | cleanup
#
# Applications are quiesced by VSS, which the QEMU guest agent's own freeze asks for. VSS ends a freeze by itself after 10 s
# (60 s for its writers), so there is no watchdog here, and --fs is refused: a freeze from a process of ours cannot be held.
$ErrorActionPreference = 'Stop'
$Base = Join-Path $env:SystemRoot 'Temp\understudy-guest'
$Provider = 'HKLM:\SYSTEM\CurrentControlSet\Services\QEMU Guest Agent VSS Provider'

function Write-Answer { param([string[]] $Fields) [Console]::Out.Write(($Fields -join "`t") + "`n") }
function Stop-With { param([int] $Status, [string] $Text) [Console]::Error.WriteLine($Text); exit $Status }
function Get-State {
    param([string] $Id)
    if ($Id -notmatch '^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$') { Stop-With 2 "usage: '$Id' is not an ID" }
    Join-Path $Base $Id
}

# VssOption 5 is a copy: the agent's default is a full backup, which breaks the chain of the guest's own backups.
function Set-CopyBackup {
    if (-not (Test-Path $Provider)) { return 'the VSS provider of the QEMU guest agent is not installed' }
    $old = (Get-ItemProperty -Path $Provider).VssOption
    if ($null -eq $old) { New-ItemProperty -Path $Provider -Name VssOption -PropertyType DWord -Value 5 | Out-Null }
    return "VssOption $((Get-ItemProperty -Path $Provider).VssOption)"
}

function Invoke-Begin {
    param([string[]] $Rest)
    $state = Get-State $Rest[0]
    if ($Rest -contains '--fs') { Stop-With 1 'file systems are frozen by the QEMU guest agent only' }
    New-Item -ItemType Directory -Force -Path $state | Out-Null
    if ($Rest -notcontains '--no-applications') { [Console]::Error.WriteLine((Set-CopyBackup)) }
    Write-Answer 'ready'
}

function Invoke-Script {
    param([string] $Id, [int] $Limit, [string] $Path)
    $state = Get-State $Id
    New-Item -ItemType Directory -Force -Path $state | Out-Null
    $log = Join-Path $state 'run.log'
    $words = if ($Path -like '*.ps1') { "powershell.exe -NoProfile -ExecutionPolicy Bypass -File `"$Path`"" } else { "`"$Path`"" }
    $process = Start-Process cmd.exe -ArgumentList "/d /s /c `"$words > `"$log`" 2>&1`"" -PassThru -WindowStyle Hidden
    $null = $process.Handle
    $status = 124
    if ($process.WaitForExit($Limit * 1000)) { $status = $process.ExitCode }
    else { & taskkill.exe /T /F /PID $process.Id 2>&1 | Out-Null }
    Write-Answer 'exit', $status
    $bytes = if (Test-Path $log) { @(Get-Content -Path $log -Encoding Byte -Tail 4096) } else { @() }
    $shown = [byte[]] @($bytes | Select-Object -Last 4096)
    Write-Answer 'output', ([Convert]::ToBase64String($shown))
    Remove-Item -Force -ErrorAction SilentlyContinue $log
}

if ($args.Count -eq 0) { Stop-With 2 'usage: version | discover | begin | end | commit | run | cleanup' }
$verb, $rest = $args
$rest = @($rest)
switch ($verb) {
    'version' { Write-Answer 'understudy-guest', '1' }
    'discover' { Write-Answer 'discovered' }
    'begin' { Invoke-Begin $rest }
    'end' { $null = Get-State $rest[0]; Write-Answer 'ended' }
    'commit' { Remove-Item -Recurse -Force -ErrorAction SilentlyContinue (Get-State $rest[0]); Write-Answer 'committed' }
    'run' { Invoke-Script $rest[0] ([int] $rest[1]) $rest[2] }
    'cleanup' {
        $found = if (Test-Path $Base) { @(Get-ChildItem -Directory $Base) } else { @() }
        foreach ($state in $found) {
            # The directory of the program that runs here is its caller's to remove.
            if ($state.FullName -eq $PSScriptRoot) { continue }
            Remove-Item -Recurse -Force $state.FullName
            Write-Answer 'removed', $state.Name
        }
        Write-Answer 'clean'
    }
    default { Stop-With 2 "usage: $verb is not a verb" }
}
